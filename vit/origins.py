"""What a model's own config files say, in whichever origin's format they are, as a ModelSpec.

Bundles (bundle.py), and as they are: folders written by timm's save_for_hf and transformers'
save_pretrained, and torchvision's weights metadata.
"""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .bundle import ModelSpec, bundle_spec
from .config import ViTConfig, variant
from .errors import ModelError
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .sources import Source


def read_spec(source: Source) -> ModelSpec | None:
    """Read what a model says of itself; None for a bare checkpoint. Raises ModelError."""
    try:
        if source.torchvision_weights:
            return _torchvision_spec(source.torchvision_weights)
        if source.config:
            config = _read_json(source.config)
            if "label_images_bundle" in config:
                return bundle_spec(config)
            if "architecture" in config:
                return _timm_spec(config)
            if config.get("model_type") in ("vit", "deit"):
                return _transformers_spec(config, source)
            raise ModelError(
                f"{source.config} describes a {config.get('model_type', 'model')} this tool does not know; "
                "it reads bundles, timm's vit_* and deit_* and transformers' vit and deit classifiers"
            )
        if source.weights.suffix == ".safetensors":
            with safe_open(source.weights, "pt") as file:
                metadata = file.metadata() or {}
            if "label_images" in metadata:
                return bundle_spec(json.loads(metadata["label_images"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SafetensorError) as error:
        raise ModelError(
            f"the configuration of {source.name} is incomplete or damaged ({type(error).__name__}: {error})"
        ) from error
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} should hold a JSON object")
    return config


# timm's model_args that are fields of ours, and those that change nothing at inference.
_TIMM_FIELDS = {"num_classes": "n_classes", "num_heads": "n_heads"} | {
    field.name: field.name
    for field in fields(ViTConfig)
    if field.name in ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "qkv_bias")
}
_TIMM_INERT = {"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
_TIMM_EXPECTED = {"global_pool": "token", "class_token": True, "dynamic_img_size": False, "strict_img_size": True}


def _timm_spec(config: dict[str, Any]) -> ModelSpec:
    changes: dict[str, Any] = {"n_classes": config["num_classes"]}
    arguments = {"global_pool": config.get("global_pool", "token"), **config.get("model_args", {})}
    for name, value in arguments.items():
        if name in _TIMM_FIELDS:
            changes[_TIMM_FIELDS[name]] = _one_side(value) if name in ("img_size", "patch_size") else value
        elif name not in _TIMM_INERT and value != _TIMM_EXPECTED.get(name):
            raise ModelError(
                f"the timm model was made with {name}={value!r}, which is not part of the plain Vision "
                "Transformer this tool builds"
            )
    base = asdict(variant(config["architecture"]))
    vit = ViTConfig(**(base | changes))

    pretrained = config.get("pretrained_cfg", config)  # older files are flat
    crop_size = _one_side(pretrained["input_size"][1:])
    crop_mode = pretrained.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash"):
        raise ModelError(f"timm's crop_mode {crop_mode!r} is not supported; center and squash are")
    labels = config.get("label_names") or pretrained.get("label_names") or ()
    descriptions = config.get("label_descriptions") or {}
    readable = tuple(descriptions.get(label, label) for label in labels)
    return ModelSpec(
        config=vit,
        preprocess=Preprocess(
            crop_size=crop_size,
            resize_size=math.floor(crop_size / pretrained.get("crop_pct", 0.875)),  # timm's default
            fit="squash" if crop_mode == "squash" else "crop",
            interpolation=pretrained.get("interpolation", "bilinear"),
            mean=_per_channel(pretrained.get("mean", IMAGENET_MEAN), vit.in_chans),
            std=_per_channel(pretrained.get("std", IMAGENET_STD), vit.in_chans),
        ),
        labels=readable,
        label_ids=tuple(labels) if descriptions else (),
    )


_PILLOW_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def _transformers_spec(config: dict[str, Any], source: Source) -> ModelSpec:
    if source.preprocessor is None:
        raise ModelError(
            f"{source.name} has no preprocessor_config.json, so how its photos were prepared is unknown; "
            "save the image processor beside the model, or convert it with `label-images models convert`"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise ModelError(f"activation {config['hidden_act']!r} is not supported; the Vision Transformer's is gelu")
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers leaves unsaid
    in_chans = config.get("num_channels", 3)
    vit = ViTConfig(
        img_size=_one_side(config.get("image_size", 224)),
        patch_size=_one_side(config.get("patch_size", 16)),
        in_chans=in_chans,
        n_classes=len(labels),
        embed_dim=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        n_heads=config.get("num_attention_heads", 12),
        mlp_ratio=config.get("intermediate_size", 3072) / config.get("hidden_size", 768),
        qkv_bias=config.get("qkv_bias", True),
        distilled=any(name.endswith("WithTeacher") for name in config.get("architectures") or ()),
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )
    processor = _read_json(source.preprocessor)
    size = processor["size"]
    squash = not (isinstance(size, dict) and "shortest_edge" in size)
    resize_size = _one_side(size if squash else size["shortest_edge"])
    crop = processor.get("do_center_crop", False)
    return ModelSpec(
        config=vit,
        preprocess=Preprocess(
            crop_size=_one_side(processor["crop_size"]) if crop else resize_size,
            resize_size=resize_size,
            fit="squash" if squash else "crop",
            interpolation=_PILLOW_RESAMPLE[processor.get("resample", 2)],
            mean=_per_channel(processor["image_mean"], in_chans),
            std=_per_channel(processor["image_std"], in_chans),
        ),
        labels=tuple(labels[str(class_id)] for class_id in range(len(labels))),
    )


def _torchvision_spec(entry: str) -> ModelSpec:
    from torchvision.models import get_weight

    weights = get_weight(entry)
    size, patch = weights.meta["min_size"][0], int(entry.split("_")[2])  # ViT_B_16_Weights...
    name = {"B": "base", "L": "large", "H": "huge"}[entry.split("_")[1]]
    transforms = weights.transforms()
    return ModelSpec(
        config=variant(f"vit_{name}_patch{patch}_{size}"),
        preprocess=Preprocess(
            crop_size=_one_side(transforms.crop_size),
            resize_size=_one_side(transforms.resize_size),
            interpolation=transforms.interpolation.value,
            mean=transforms.mean,
            std=transforms.std,
        ),
        labels=tuple(weights.meta["categories"]),
    )


def _one_side(size: Any) -> int:
    """Return the side of a square given as 224, [224, 224] or {"height": 224, "width": 224}."""
    if isinstance(size, int):
        return size
    sides = set(size.values()) if isinstance(size, dict) else set(size)
    if len(sides) != 1:
        raise ModelError(f"only square images and patches are supported, not {size}")
    return int(sides.pop())


def _per_channel(values: Any, in_chans: int) -> tuple[float, ...]:
    """Repeat one value for all channels where it is the same for each; else leave it to be checked."""
    values = tuple(values)
    return values[:1] * in_chans if len(set(values)) == 1 else values
