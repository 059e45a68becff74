"""Models with random weights for benchmarks: alone, or as each contender of a comparison has them.

make_bundle(arch, out)    a bundle of ours
make_models(arch, out)    the same weights for label-images, timm and transformers
"""

import json
from pathlib import Path
from typing import Any

import torch

from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.classifier import Classifier, load_classifier
from vit.config import ViTConfig, variant
from vit.model import VisionTransformer
from vit.preprocess import preset

TOY = "toy"  # a network for tests of benchmarks
_TOY = ViTConfig(img_size=32, patch_size=16, embed_dim=32, depth=2, n_heads=2, n_classes=10)


def make_bundle(arch: str, out: Path) -> Classifier:
    """Write a bundle with random weights; return what it holds."""
    torch.manual_seed(0)
    config = _TOY if arch == TOY else variant(arch)
    labels = tuple(f"class {number}" for number in range(config.n_classes))
    spec = ModelSpec(config, preset("vit", config.img_size), labels, name=arch)
    write_bundle(spec, VisionTransformer(config).state_dict(), out)
    return load_classifier(str(out))


def make_models(arch: str, out: Path) -> None:
    """Write the same random weights as transformers has them, and as a bundle with timm's keys."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = variant(arch)
    numbers: dict[str, Any] = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.n_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "num_labels": config.n_classes,
    }
    ViTForImageClassification(TheirConfig(**numbers)).save_pretrained(out / "transformers")
    size = {"height": config.img_size, "width": config.img_size}
    ViTImageProcessor(size=size, resample=2).save_pretrained(out / "transformers")
    classifier = load_classifier(str(out / "transformers"))
    write_bundle(classifier.spec, classifier.model.state_dict(), out / "bundle")
    file = out / "bundle" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"timm": arch}))
