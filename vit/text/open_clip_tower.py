"""open_clip's text towers and tokenizers, as an open_clip_config.json describes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from vit.checkpoints.layouts import State
from vit.checkpoints.values import refuse_unknown
from vit.errors import ModelError

from .towers import TextTowerFiles, load_weights, unknown_token

# A text tower is only made together with an image tower; the model's own may be a thousand times
# this.
_SMALLEST_TOWER = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
# open_clip's plain CLIP keeps the text tower's tensors beside the image tower, the others under
# `text.`
_PLAIN = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)
_OWN_SETTINGS = {"clean"}
_HF_SETTINGS = {"clean", "strip_sep_token", "language"}
_CONTEXT_LENGTH = 77  # where the config says none


class OpenClipTower:
    def __init__(self, files: TextTowerFiles, state: State, tokenizer: Path | None) -> None:
        model = dict(files.config["model_cfg"])
        text = dict(model["text_cfg"])
        if model.get("multimodal_cfg"):
            raise ModelError(f"{files.source.name} is a CoCa, whose text tower is not supported")
        self.context_length = int(text.get("context_length", _CONTEXT_LENGTH))
        if text.get("hf_model_name"):
            raise ModelError(
                f"the text tower of {files.source.name} is a {text['hf_model_name']} of transformers "
                "inside open_clip, which is not supported; open_clip's own text towers are"
            )
        self.tokenizer = _tokenizer(text, self.context_length, tokenizer, files.source.name)
        is_own = isinstance(self.tokenizer, SimpleTokenizer)
        self.unknown = None if is_own else unknown_token(self.tokenizer.tokenizer)
        self.mode = str(text.get("tokenizer_mode") or "")
        whole: Any = open_clip.CustomTextCLIP(
            embed_dim=model["embed_dim"],
            vision_cfg=_SMALLEST_TOWER,
            text_cfg=text,
            quick_gelu=bool(model.get("quick_gelu")),
        )
        self.model = whole.text
        self.vocab_size = int(self.model.vocab_size)
        load_weights(self.model, _text_tensors(state), files.source.name)

    def tokens(self, prompt: str) -> tuple[int, ...]:
        if isinstance(self.tokenizer, SimpleTokenizer):
            ends = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
            return (ends[0], *self.tokenizer.encode(prompt), ends[1])
        cleaned = self.tokenizer.clean_fn(prompt)
        tokens = self.tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]
        # This mode puts a token for the class at the very end.
        return (*tokens, *([0] if self.mode == "clips" else []))

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        embeddings: Tensor = self.model(self.tokenizer(list(prompts)))
        return embeddings.float()  # [P, F]


def _tokenizer(text: dict[str, Any], context_length: int, folder: Path | None, name: str) -> Any:
    settings = dict(text.get("tokenizer_kwargs") or {})
    # What is left over goes on to transformers, where one word lets a model's own code run.
    known = _OWN_SETTINGS if folder is None else _HF_SETTINGS
    refuse_unknown(f"the tokenizer_kwargs of {name}", settings, known)
    if folder is None:
        return SimpleTokenizer(context_length=context_length, **settings)
    return HFTokenizer(
        str(folder),
        context_length=context_length,
        tokenizer_mode=text.get("tokenizer_mode"),
        trust_remote_code=False,
        **settings,
    )


def _text_tensors(state: State) -> State:
    """A whole model's tensors of the text tower, as the tower calls them."""
    nested = {
        key.removeprefix("text."): tensor for key, tensor in state.items() if key[:5] == "text."
    }
    return nested or {key: tensor for key, tensor in state.items() if key.startswith(_PLAIN)}
