"""The models that are compared: one network with random weights, in each contender's own format."""

import json
from pathlib import Path
from typing import Any

import torch

from vit.checkpoints.bundle import write_bundle
from vit.classifier import load_classifier
from vit.config import variant


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
