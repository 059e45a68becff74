"""Text towers behind one small interface: prompts -> tokens, prompts -> embeddings.

The networks and tokenizers are libraries' work (the extra `text`), imported when a head is made and
not before. What kind a model is of is read off its config, with no library.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vit.checkpoints.layouts import State
from vit.checkpoints.locate import Source
from vit.checkpoints.values import read_json
from vit.errors import ModelError

# transformers' models with two towers, and those of them that were trained with a sigmoid.
_TRANSFORMERS = {"CLIPModel": "clip", "SiglipModel": "siglip", "Siglip2Model": "siglip2"}


class TextTower(Protocol):
    """`context_length` is how many tokens a prompt may have, with those at its ends, and `vocab_size`
    of how many the network knows one. `unknown` is the token that stands for letters the tokenizer
    does not know; None where it knows all.
    """

    context_length: int
    vocab_size: int
    unknown: int | None

    def tokens(self, prompt: str) -> tuple[int, ...]:
        """The prompt's tokens, with those at its ends: all of them, however many."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """P prompts of at most `context_length` tokens -> float32 [P, F], of any length."""


@dataclass(frozen=True)
class TextTowerFiles:
    """What a model says of its text tower. `kind` is clip, siglip, siglip2 or open_clip.

    `tokenizer` is the Hub name of the tokenizer where that is not beside the weights; "" where it
    is, and `needs_tokenizer` is False for open_clip's own, which is in its package.
    """

    kind: str
    source: Source
    config: dict[str, Any]
    tokenizer: str = ""
    needs_tokenizer: bool = True

    @property
    def has_bias(self) -> bool:
        """Whether the model learned a bias, as it does where it is trained with a sigmoid."""
        if self.kind == "open_clip":
            return self.config["model_cfg"].get("init_logit_bias") is not None
        return self.kind.startswith("siglip")


def text_tower_of(source: Source) -> TextTowerFiles | None:
    """Say what text tower a model has, by its config; None for a model without one."""
    if source.config is None:
        return None
    config = read_json(source.config)
    model = config.get("model_cfg")
    if isinstance(model, dict) and isinstance(text := model.get("text_cfg"), dict):
        name = str(text.get("hf_tokenizer_name") or "")
        return TextTowerFiles("open_clip", source, config, name, needs_tokenizer=bool(name))
    family = config.get("model_type")
    named = config.get("architectures") or [
        name for name, kind in _TRANSFORMERS.items() if kind == family
    ]
    if not named or _TRANSFORMERS.get(named[0]) != family or family is None:
        return None
    return TextTowerFiles(family, source, config)


def open_tower(files: TextTowerFiles, state: State, tokenizer: Path | None) -> TextTower:
    """The tower, with the weights of a whole model and the tokenizer's folder. Raises ModelError."""
    with _libraries(files):
        if files.kind == "open_clip":
            from .open_clip_tower import OpenClipTower

            return OpenClipTower(files, state, tokenizer)
        from .transformers_tower import TransformersTower

        assert tokenizer is not None
        return TransformersTower(files, state, tokenizer)


def unknown_token(tokenizer: Any) -> int | None:
    """A transformers tokenizer's token for letters it does not know. Raises ValueError where it
    cannot pad.

    CLIP's names its end of text for it, and needs none: it takes letters apart into bytes.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer names no padding token")
    token: int | None = tokenizer.unk_token_id
    return None if token in (tokenizer.eos_token_id, tokenizer.pad_token_id) else token


@contextmanager
def _libraries(files: TextTowerFiles) -> Iterator[None]:
    """What their libraries raise, as one can mend it."""
    name = files.source.name
    try:
        yield
    except ImportError as error:
        raise ModelError(
            f"labels in your own words take the text tower of {name}, which needs packages that "
            f"are not installed ({_first_line(error)}): pip install 'label-images[text]'. They are "
            "needed once: the labels made of the words are kept"
        ) from error
    except Exception as error:
        # Of these `tokenizers` raises the last itself, for a file that is not as it should be.
        known = isinstance(error, OSError | ValueError | KeyError | TypeError | RuntimeError)
        if not known and type(error) is not Exception:
            raise
        raise ModelError(
            f"the text tower or the tokenizer of {name} cannot be loaded ({type(error).__name__}: "
            f"{_first_line(error)}); its folder should be as its library saved it, tokenizer and all"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def load_weights(module: Any, state: State, name: str) -> None:
    """Give a tower its tensors, as float32, in eval mode. Raises ModelError where one differs."""
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in state or state[key].shape != tensor.shape:
            found = f"of shape {list(state[key].shape)}" if key in state else "not there"
            raise ModelError(
                f"the weights of {name} do not fit its text tower: {key} is {found}, and should be "
                f"of shape {list(tensor.shape)}; its config must be the one of the weights"
            )
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise ModelError(
            f"the text tower of {name} has a tensor {unknown[0]!r}, which its config does not "
            "account for; its config must be the one of the weights"
        )
    module.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    module.eval().requires_grad_(False)
