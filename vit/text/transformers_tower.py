"""The text towers of transformers' CLIPModel, SiglipModel and Siglip2Model, and their tokenizers."""

import re
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vit.checkpoints.layouts import State

from .towers import TextTowerFiles, load_weights, unknown_token

_OF_TEXT = ("text_model.", "text_projection.")


class TransformersTower:
    """SigLIP's were trained on prompts padded to full length, and see the padding. CLIP's look back
    only, and see none: no more than the longest needs is computed.
    """

    def __init__(self, files: TextTowerFiles, state: State, tokenizer: Path) -> None:
        self.is_siglip = files.kind.startswith("siglip")
        with _quiet():
            config, self.model = _network(files)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(tokenizer), local_files_only=True, trust_remote_code=False
            )
        self.context_length = int(config.max_position_embeddings)
        self.vocab_size = int(config.vocab_size)
        self.unknown = unknown_token(self.tokenizer)
        load_weights(self.model, _text_tensors(state, self.model), files.source.name)

    def tokens(self, prompt: str) -> tuple[int, ...]:
        with _quiet():  # it warns of long ones, and those are ours to refuse
            return tuple(self.tokenizer(self._cleaned(prompt))["input_ids"])

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        padded = self.tokenizer(
            [self._cleaned(prompt) for prompt in prompts],
            padding="max_length" if self.is_siglip else "longest",
            max_length=self.context_length,
            return_tensors="pt",
        )
        if self.is_siglip:
            embeddings: Tensor = self.model(input_ids=padded["input_ids"]).pooler_output
        else:
            mask = padded["attention_mask"]
            embeddings = self.model(input_ids=padded["input_ids"], attention_mask=mask).text_embeds
        return embeddings.float()  # [P, F]

    def _cleaned(self, prompt: str) -> str:
        return canonical(prompt) if self.is_siglip else prompt


def canonical(text: str) -> str:
    """Lower case, no punctuation, single spaces: what all of SigLIP was trained on.

    big_vision's canonicalize_text does so before the tokenizer. SigLIP 2 has Gemma's, which knows
    nothing of it.
    """
    text = text.replace("_", " ").lower()
    return re.sub(r"\s+", " ", text.translate(str.maketrans("", "", string.punctuation))).strip()


def _network(files: TextTowerFiles) -> tuple[Any, Any]:
    """The text part of the config, and the network with weights yet to come."""
    if files.kind == "clip":
        whole = transformers.CLIPConfig.from_dict(files.config)
        text = whole.text_config
        text.projection_dim = whole.projection_dim  # what the whole model goes by
        return text, transformers.CLIPTextModelWithProjection(text)
    if files.kind == "siglip":
        text = transformers.SiglipConfig.from_dict(files.config).text_config
        return text, transformers.SiglipTextModel(text)
    text = transformers.Siglip2Config.from_dict(files.config).text_config
    return text, transformers.Siglip2TextModel(text)


def _text_tensors(state: State, model: Any) -> State:
    """A whole model's tensors of the text tower, as the tower calls them."""
    state = {
        key: tensor
        for key, tensor in state.items()
        if key.startswith(_OF_TEXT) and not key.endswith(".position_ids")
    }
    if not any(key.startswith("text_model.") for key in model.state_dict()):
        return {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own lines between the command's."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
