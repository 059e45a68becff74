"""The model of whoever names none: which it is, and whether it can be had here.

It is pinned: the same version of label-images means the same weights by it everywhere. Why this one:
docs/design/default-model.md.
"""

from dataclasses import dataclass
from importlib.metadata import version

from vit.checkpoints.hub import why_not_at_hand
from vit.checkpoints.published import Published, published_models

EMBEDDED = "embedded"
_REPOSITORY = "timm/vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k"
_COMMIT = "c63bd74dafd95ad27c8eaba143ce8029f3746ea6"
DEFAULT_MODEL = f"hf-hub:{_REPOSITORY}@{_COMMIT}"


@dataclass(frozen=True)
class Decision:
    """`reason` is for the record; `warning` is said where it is not the default model."""

    model: str
    reason: str
    warning: str = ""


def decide() -> Decision:
    """Decide which model labels where no table and no command says it; downloads nothing.

    Takes a few seconds at most, whatever the network does (vit/checkpoints/hub.py).
    """
    why = why_not_at_hand(_REPOSITORY, _COMMIT)
    if why is None:
        return Decision(DEFAULT_MODEL, f"the default of label-images {version('label-images')}")
    facts = published()
    return Decision(
        EMBEDDED,
        f"the default model is not in this machine's cache, and {why}",
        "labelling with the small model in the package, which knows 200 everyday classes and is "
        f"often wrong: the default model ({facts.name}, {facts.size_mb:.0f} MB) is not in this "
        f"machine's cache, and {why}. For better labels run `label-images models fetch` once with "
        f"a network; --model {EMBEDDED} says that the small one is meant",
    )


def is_lesser(model: str) -> bool:
    """Whether the default model was made to take this one's place."""
    return model == EMBEDDED


def published() -> Published:
    """What is published of the default model."""
    return published_models(f"hf-hub:{_REPOSITORY}")[0]
