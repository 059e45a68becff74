"""What a model's own config files say, in whichever origin's format they are, as a ModelSpec.

Bundles (bundle.py), and as they are: folders written by timm's save_for_hf (from_timm.py) and
transformers' save_pretrained (from_transformers.py), and torchvision's weights metadata.
"""

import json

from safetensors import SafetensorError, safe_open

from vit.config import variant
from vit.errors import ModelError, no_permission
from vit.preprocess import Preprocess

from .bundle import ModelSpec, bundle_spec
from .class_names import names_of_head
from .from_open_clip import open_clip_spec
from .from_timm import timm_spec
from .from_transformers import transformers_spec
from .locate import Source
from .transformers_networks import MODEL_TYPES
from .values import one_side, read_json


def read_spec(source: Source) -> ModelSpec | None:
    """Read what a model says of itself; None for a bare checkpoint. Raises ModelError."""
    try:
        if source.torchvision_weights:
            return _torchvision_spec(source.torchvision_weights)
        if source.config:
            config = read_json(source.config)
            if "label_images_bundle" in config:
                return bundle_spec(config)
            if "model_cfg" in config:
                return open_clip_spec(config, source.name)
            if "architecture" in config:
                return timm_spec(config)
            if config.get("model_type") in MODEL_TYPES:
                return transformers_spec(config, source)
            raise ModelError(
                f"{source.config} describes a {config.get('model_type', 'model')} this tool does "
                "not know; it reads bundles, timm's Vision Transformers and transformers' "
                f"{', '.join(MODEL_TYPES)}"
            )
        if source.weights.suffix == ".safetensors":
            source.weights.open(
                "rb"
            ).close()  # safetensors takes one that may not be read for one that is not there
            with safe_open(source.weights, "pt") as file:
                metadata = file.metadata() or {}
            if "label_images" in metadata:
                return bundle_spec(json.loads(metadata["label_images"]))
    except PermissionError as error:
        raise no_permission(source.weights) from error
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        SafetensorError,
    ) as error:
        raise ModelError(
            f"the configuration of {source.name} is incomplete or damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    return None


def _torchvision_spec(entry: str) -> ModelSpec:
    from torchvision.models import get_weight

    weights = get_weight(entry)
    size, patch = weights.meta["min_size"][0], int(entry.split("_")[2])  # ViT_B_16_Weights...
    name = {"B": "base", "L": "large", "H": "huge"}[entry.split("_")[1]]
    transforms = weights.transforms()
    return ModelSpec(
        config=variant(f"vit_{name}_patch{patch}_{size}"),
        preprocess=Preprocess(
            crop_size=one_side(transforms.crop_size),
            resize_size=one_side(transforms.resize_size),
            interpolation=transforms.interpolation.value,
            mean=transforms.mean,
            std=transforms.std,
        ),
        labels=tuple(weights.meta["categories"]),
        label_ids=names_of_head(1000, entry).label_ids,
    )
