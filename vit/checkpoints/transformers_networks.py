"""The families of transformers' Vision Transformers: what a config's keys make of ViTConfig."""

import math
from typing import Any

from vit.config import mlp_ratio_of
from vit.errors import ModelError

from .values import one_side

# What each family's config takes for a key that is missing; other keys it has none of its own.
_VIT: dict[str, Any] = {
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_size": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-12,
}  # fmt: skip
_DINOV2 = {name: value for name, value in _VIT.items() if name != "intermediate_size"} | {
    "patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": False,
}  # fmt: skip
_CLIP = {name: value for name, value in _VIT.items() if name != "qkv_bias"} | {
    "patch_size": 32, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "projection_dim": 512,
}  # fmt: skip
_SIGLIP = {name: value for name, value in _VIT.items() if name != "qkv_bias"} | {
    "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "vision_use_head": True,
}  # fmt: skip
FAMILIES = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
    "clip": _CLIP,
    "siglip": _SIGLIP,
    "siglip2": {name: value for name, value in _SIGLIP.items() if name != "image_size"}
    | {"num_patches": 256},
}
# What a family's networks have and the first Vision Transformer has not.
_PARTS: dict[str, dict[str, Any]] = {
    "vit": {},
    "deit": {},
    "dinov2": {"layer_scale": True},
    # Registers have no position, and the class token's is added to it when it is read.
    "dinov2_with_registers": {"layer_scale": True, "pos_embed": "patches"},
    "clip": {"norm_pre": True},
    "siglip": {"class_token": False},
    "siglip2": {"class_token": False},
}
# Each family's classes, the one first that is meant where a config names none, and what their
# features are. Those of ...Model have no head.
ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {"ViTForImageClassification": {}, "ViTModel": {}},
    "deit": {
        # Its head reads the class token alone: the distillation token is no more than a register.
        "DeiTForImageClassification": {"reg_tokens": 1},
        "DeiTForImageClassificationWithTeacher": {"distilled": True},
        "DeiTModel": {"reg_tokens": 1},
    },
    "dinov2": {"Dinov2ForImageClassification": {"pool": "token_avg"}, "Dinov2Model": {}},
    "dinov2_with_registers": {
        "Dinov2WithRegistersForImageClassification": {"pool": "token_avg"},
        "Dinov2WithRegistersModel": {},
    },
    "clip": {
        "CLIPForImageClassification": {"pool": "avg", "final_norm": "none"},
        "CLIPModel": {},
        "CLIPVisionModel": {},
        "CLIPVisionModelWithProjection": {},
    },
    "siglip": {
        "SiglipForImageClassification": {"pool": "avg"},
        "SiglipModel": {"pool": "map"},
        "SiglipVisionModel": {"pool": "map"},
    },
    "siglip2": {
        "Siglip2ForImageClassification": {"pool": "avg"},
        "Siglip2Model": {"pool": "map"},
        "Siglip2VisionModel": {"pool": "map"},
    },
}
TOWERS = {f"{family}_vision_model": family for family in ("clip", "siglip", "siglip2")}
MODEL_TYPES = (*FAMILIES, *TOWERS)
# These resample their positions to whatever size the photos are; the others refuse another one.
ANY_SIZE = {"dinov2": "plain", "dinov2_with_registers": "antialiased"}
_ACTIVATION_FUNCTIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def network_fields(
    values: dict[str, Any], family: str, architecture: str, name: str
) -> dict[str, Any]:
    """The fields of a ViTConfig, but for n_classes, from all keys that FAMILIES has of a family.

    `name` is what messages call the model. Raises ModelError.
    """
    if values["hidden_act"] not in _ACTIVATION_FUNCTIONS:
        raise ModelError(
            f"activation {values['hidden_act']!r} is not supported; "
            f"{', '.join(_ACTIVATION_FUNCTIONS)} are"
        )
    fields: dict[str, Any] = _PARTS[family] | ARCHITECTURES[family][architecture]
    if fields.get("pool") == "map" and not values["vision_use_head"]:
        raise ModelError(
            f"{name} says vision_use_head=false: it gives features of each patch and none of the "
            "whole photo"
        )
    if architecture in ("CLIPModel", "CLIPVisionModelWithProjection"):
        fields["proj_dim"] = values["projection_dim"]
    if "num_register_tokens" in values:
        fields["reg_tokens"] = values["num_register_tokens"]
    patch_size, dim = one_side(values["patch_size"]), values["hidden_size"]
    hidden_dim = values.get("intermediate_size") or int(dim * values["mlp_ratio"])
    mlp = _ACTIVATION_FUNCTIONS[values["hidden_act"]]
    if values.get("use_swiglu_ffn"):
        # Two thirds, rounded up to a multiple of 8: there are two such layers where one was.
        mlp, hidden_dim = "swiglu", (int(hidden_dim * 2 / 3) + 7) // 8 * 8
    return fields | {
        "img_size": _image_size(values, patch_size, name),
        "patch_size": patch_size,
        "in_chans": values["num_channels"],
        "embed_dim": dim,
        "depth": values["num_hidden_layers"],
        "n_heads": values["num_attention_heads"],
        "mlp_ratio": mlp_ratio_of(hidden_dim, dim),
        "mlp": mlp,
        "qkv_bias": values.get("qkv_bias", True),
        "norm_eps": values["layer_norm_eps"],
    }


def _image_size(values: dict[str, Any], patch_size: int, name: str) -> int:
    if "num_patches" not in values:
        return one_side(values["image_size"])
    grid_size = math.isqrt(values["num_patches"])  # siglip2
    if grid_size**2 != values["num_patches"]:
        raise ModelError(f"{name} has num_patches={values['num_patches']}, which is no square")
    return grid_size * patch_size
