"""Small models with a text tower, random weights and a tokenizer of their own, as their libraries
save them.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.helpers import peaked_

# SigLIP 2 of one size is a SigLIP with Gemma's tokenizer; siglip2 is the one of any size (NaFlex).
FAMILIES = ("clip", "siglip", "siglip2", "siglip2_fixed", "open_clip", "open_clip_siglip")
_KINDS = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2", "siglip2_fixed": "Siglip"}
CONTEXT = 32
SIZE = 32  # pixels
_VOCABULARY = 600
_WORDS = [
    "a photo of a cat", "a photo of a dog", "a scanned bill", "a photo of an invoice",
    "this is a red bus on the street", "people dancing at a wedding",
]  # fmt: skip


def model_folder(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a model of a family with random weights, whose features and words differ clearly."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    if family.startswith("open_clip"):
        _open_clip(folder, with_bias=family.endswith("siglip"))
    else:
        _transformers(folder, family)
    return folder


def their_logits(
    folder: Path, family: str, images: torch.Tensor, prompts: list[str]
) -> torch.Tensor:
    """The library's own zero-shot logits [B, P], one class a prompt, before the activation."""
    with torch.inference_mode():
        if family.startswith("open_clip"):
            model = their_open_clip(folder)
            tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(prompts)
            logits: torch.Tensor = model.get_logits(images, tokens)[0]
            return logits
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        said = tokenizer(prompts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        if family != "clip":  # trained without a mask: the padding is seen
            said.pop("attention_mask", None)
        result = their_transformers(folder, family)(**said, **_pixels(images, family))
        return result.logits_per_image


def their_open_clip(folder: Path) -> Any:
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval()


def their_transformers(folder: Path, family: str) -> Any:
    return getattr(transformers, f"{_KINDS[family]}Model").from_pretrained(folder).eval()


def _pixels(images: torch.Tensor, family: str) -> dict[str, Any]:
    if family != "siglip2":
        return {"pixel_values": images}
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 4, 4, 8, 8]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), 16, 8 * 8 * 3)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(len(images), 16, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[4, 4]] * len(images)),
    }


def _transformers(folder: Path, family: str) -> None:
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = tower | ends | {"vocab_size": _VOCABULARY, "max_position_embeddings": CONTEXT}
    vision = tower | {"patch_size": 8}
    vision |= {"num_patches": 16} if family == "siglip2" else {"image_size": SIZE}
    kind = _KINDS[family]
    # A projection of another width than the text_config's own default: the whole model's counts.
    more = {"projection_dim": 24} if family == "clip" else {}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **more)
    model = getattr(transformers, f"{kind}Model")(config)
    peaked_(model, 0.3)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        if family != "clip":
            model.logit_bias.fill_(-4.0)
    model.save_pretrained(folder)
    makers = {"clip": _clip_tokenizer, "siglip": _sentencepiece}
    makers.get(family, _gemma)().save_pretrained(folder)
    image = {"image_processor_type": f"{kind}ImageProcessor"}
    if family == "clip":
        image |= {"size": {"shortest_edge": SIZE}, "crop_size": SIZE}
    else:  # siglip2's own processor gives each photo patches for its shape; here all are squares
        image = {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIZE, "width": SIZE}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image))


def _clip_tokenizer() -> Any:
    """Byte-level BPE with CLIP's ends of words, start and end of text; it knows all letters."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("o", "f</w>"), ("p", "h"), ("ph", "o"), ("pho", "t")]
    pieces = [start, end, *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    pieces += [first + second for first, second in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    assert len(vocabulary) <= _VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.RobertaProcessing((end, 1), (start, 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end, unk_token=end,
        padding_side="right",
    )  # fmt: skip


def _sentencepiece() -> Any:
    """Pieces with their likelihoods, as SigLIP's; it pads with its end of text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0)]
    words = sorted({word for text in _WORDS for word in text.split()})
    pieces += [(f"▁{word}", -3.0) for word in words if len(word) > 1]
    pieces += [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>",
        padding_side="right",
    )  # fmt: skip


def _gemma() -> Any:
    """BPE that minds case and punctuation, and falls back to bytes, as Gemma's does."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    letters = sorted({*"▁!?.,-'", *map(chr, range(ord("a"), ord("z") + 1))})
    letters += [letter.upper() for letter in letters if letter.isalpha() and letter != "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", padding_side="right",
    )  # fmt: skip


def _open_clip(folder: Path, with_bias: bool) -> None:
    """As push_to_hf_hub writes it. With a bias it is a SigLIP, with its tokenizer beside it."""
    text: dict[str, Any] = {"context_length": CONTEXT, "width": 32, "heads": 2, "layers": 2}
    model: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    }  # fmt: skip
    if with_bias:
        text |= {
            "vocab_size": _VOCABULARY, "hf_tokenizer_name": "acme/siglip", "no_causal_mask": True,
            "tokenizer_kwargs": {"clean": "canonicalize"}, "pool_type": "last", "proj_bias": True,
            "norm_kwargs": {"eps": 1e-6},
        }  # fmt: skip
        model |= {"custom_text": True, "init_logit_bias": -4.0}
        _sentencepiece().save_pretrained(folder)
    model["text_cfg"] = text
    kind = open_clip.CustomTextCLIP if with_bias else open_clip.CLIP
    made = kind(**{key: value for key, value in model.items() if key != "custom_text"})
    peaked_(made, 0.3)
    with torch.no_grad():
        made.logit_scale.fill_(3.0)
        if with_bias:
            made.logit_bias.fill_(-4.0)
    # A mean and std that no default has: what is written here has to be used.
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear",
                  "resize_mode": "squash"}  # fmt: skip
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in made.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
