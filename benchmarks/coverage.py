"""Which of timm's Vision Transformers load here, and give timm's numbers.

    python -m benchmarks.coverage [PART_OF_A_NAME ...]

Every pretrained model with a head in timm's vision_transformer.py, deit.py and eva.py is made by
timm itself, two blocks deep and with random weights, saved in timm's own format, loaded with
load_classifier and asked about the same random pixels, in float32. Names of CLIP towers whose
"head" is the projection to text are counted apart: they are no classifiers, but their image side is
the same. No weights are downloaded. Ends with one line of JSON.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from timm.models import get_pretrained_cfg, is_model_in_modules, save_for_hf
from timm.models._hub import save_config_for_hf
from torch import nn

from vit.checkpoints.locate import find_source
from vit.checkpoints.origins import read_spec
from vit.classifier import load_classifier
from vit.errors import ModelError

_FILES = ("vision_transformer", "deit", "eva")
_PROJECTIONS = (512, 640, 768, 1024, 1280)  # of CLIP towers and Perception Encoders
_DEPTH = 2  # as many blocks as tell one block's own numbers from another's
_CLOSE = 1e-4

Verdict = Literal["agrees", "refused", "WRONG"]


@dataclass(frozen=True)
class Outcome:
    """`difference` is the largest of features and of logits, for models that load."""

    name: str
    verdict: Verdict
    difference: float = 0.0
    reason: str = ""


def published(name: str) -> Any:
    """What timm says of the weights that are published under a name."""
    return get_pretrained_cfg(name)


def heads(parts: Sequence[str] = ()) -> list[str]:
    """The pretrained models with a head whose names have all these parts."""
    return [
        name
        for name in timm.list_models(pretrained=True)
        if is_model_in_modules(name.partition(".")[0], _FILES)
        and published(name).num_classes
        and all(part in name for part in parts)
    ]


def is_classifier(name: str) -> bool:
    """Whether the head is one for classes, and not a CLIP tower's projection."""
    is_tower = "_clip_" in name or "_pe_core_" in name
    return not (is_tower and published(name).num_classes in _PROJECTIONS)


def one_network(name: str) -> tuple[Any, ...]:
    """What names of the same network have in common."""
    config = published(name)
    return name.partition(".")[0], config.num_classes, tuple(config.input_size)


def make(name: str, depth: int | None = _DEPTH, **arguments: Any) -> nn.Module:
    """timm's own model with random weights, and no time spent on those that timm would give it."""
    with torch.device("meta"):
        # None: as many as the name has
        model = timm.create_model(name, depth=depth, **arguments).eval()
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # type: ignore[operator]
    randomise_(model)
    return model


def randomise_(model: nn.Module) -> None:
    """Give every parameter random values, also what starts at zero or one.

    What one of the two networks leaves out then shows.
    """
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.uniform_(0.2, 1.5)
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.normal_(mean=float("norm" in name and "weight" in name), std=0.2)


def compare(names: Sequence[str], depth: int | None = _DEPTH) -> Iterator[Outcome]:
    """Make one model with timm and load it here, under each of its names.

    The names stand for one network, trained in several ways: they differ in how photos are
    prepared.
    """
    torch.manual_seed(0)
    difference = -1.0
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        theirs = make(names[0], depth)
        # CLIP towers are refused as classifiers where they name none.
        named = {"label_names": [f"class {i}" for i in range(theirs.num_classes)]}  # type: ignore[arg-type]
        save_for_hf(theirs, folder, model_config=named, safe_serialization=True)
        for name in names:
            theirs.pretrained_cfg = published(name).to_dict()
            save_config_for_hf(theirs, str(Path(folder, "config.json")), model_config=named)
            try:
                if difference >= 0:
                    read_spec(find_source(folder))
                else:
                    ours = load_classifier(folder)
                    difference = largest_difference(ours.model, theirs)
            except ModelError as error:
                yield Outcome(name, "refused", reason=str(error).replace(folder, ""))
                continue
            yield Outcome(name, "agrees" if difference < _CLOSE else "WRONG", difference)


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Of features and logits, for one image of random pixels."""
    images = torch.randn(1, 3, *theirs.patch_embed.img_size)  # type: ignore[misc, union-attr]
    tokens, expected_tokens = ours.forward_features(images), theirs.forward_features(images)  # type: ignore[operator]
    features = ours.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    expected = theirs.forward_head(expected_tokens, pre_logits=True)  # type: ignore[operator]
    if features.shape[1] == 2 * expected.shape[1]:  # a distilled DeiT's two tokens; timm's mean
        features = features.unflatten(1, (2, -1)).mean(dim=1)
    assert expected.std() > 0.01, "the comparison needs features that are not all alike"
    pairs = ((features, expected), (ours(images), theirs(images)))
    return max(float((a - b).abs().max()) for a, b in pairs)


def main(parts: Sequence[str]) -> None:
    started = time.perf_counter()
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    print(f"{'model':<66} {'verdict':<8} largest difference, or why not")
    for _, names in groupby(sorted(heads(parts), key=one_network), key=one_network):
        for outcome in compare(list(names)):
            counts[is_classifier(outcome.name)][outcome.verdict] += 1
            what = f"{outcome.difference:.1e}" if not outcome.reason else outcome.reason
            shown = outcome.name + ("" if is_classifier(outcome.name) else " (CLIP tower)")
            print(f"{shown:<66} {outcome.verdict:<8} {what}", flush=True)
    print()
    for each, title in ((True, "classifiers"), (False, "CLIP towers")):
        told = ", ".join(f"{counts[each][verdict]} {verdict}" for verdict in get_args(Verdict))
        print(f"{title}: {counts[each].total()} published; {told}")
    result: dict[str, Any] = {
        "timm": timm.__version__, "depth": _DEPTH, "seconds": round(time.perf_counter() - started),
        "classifiers": counts[True], "clip_towers": counts[False],
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(1 if counts[True]["WRONG"] or counts[False]["WRONG"] else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
