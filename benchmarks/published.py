"""Makes vit/checkpoints/data/published-models.csv, the facts of `label-images models list --all`.

    python -m benchmarks.published path/to/pytorch-image-models/results/results-imagenet.csv

One line for each classifier that timm publishes in its files vision_transformer, deit and eva (its
three test models left out). Image size, classes and parameters are timm's own model's. Top-1 on
ImageNet is what timm measured at that image size: from its table of results, else from its README;
it stays empty where neither has it, and for heads of other classes. GMACs are counted here, by torch's
FlopCounterMode on timm's model without weights: billions of multiply-adds an image, of all matrix
products and convolutions, those of attention included.

A number of parameters that differs from the table's is an error: then it is not that model.
torchvision's weights say all of it themselves. The last line printed is JSON.
"""

import argparse
import csv
import json
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights, list_models

from vit.checkpoints.published import PUBLISHED_TABLE, Published

FAMILIES = ("vision_transformer", "deit", "eva")
HEADS = (1000, 11221, 11821, 21841, 21843)  # others (512, 768, ...) are CLIP's embeddings

# In the README of timm 1.0.25 (23 February 2026) and in no table of results that was read.
README_TOP1 = {
    "vit_so400m_patch14_siglip_378.webli_ft_in1k": 89.42,
    "vit_so400m_patch14_siglip_gap_378.webli_ft_in1k": 89.03,
    "vit_so150m_patch16_reg4_gap_256.sbb_e250_in12k_ft_in1k": 86.7,
    "vit_so150m_patch16_reg4_gap_384.sbb_e250_in12k_ft_in1k": 87.4,
    "vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k": 87.3,
    "vit_so150m2_patch16_reg1_gap_384.sbb_e200_in12k_ft_in1k": 87.9,
    "vit_so150m2_patch16_reg1_gap_448.sbb_e200_in12k_ft_in1k": 88.1,
    "vit_dlittle_patch16_reg1_gap_256.sbb_nadamuon_in1k": 83.24,
    "vit_dwee_patch16_reg1_gap_256.sbb_nadamuon_in1k": 81.80,
    "vit_dpwee_patch16_reg1_gap_256.sbb_nadamuon_in1k": 81.67,
    "vit_large_patch16_rope_mixed_ape_224.naver_in1k": 84.84,
    "vit_large_patch16_rope_mixed_224.naver_in1k": 84.828,
    "vit_large_patch16_rope_ape_224.naver_in1k": 84.65,
    "vit_large_patch16_rope_224.naver_in1k": 84.648,
    "vit_base_patch16_rope_mixed_ape_224.naver_in1k": 83.894,
    "vit_base_patch16_rope_mixed_224.naver_in1k": 83.804,
    "vit_base_patch16_rope_ape_224.naver_in1k": 83.782,
    "vit_base_patch16_rope_224.naver_in1k": 83.718,
    "vit_small_patch16_rope_224.naver_in1k": 81.23,
    "vit_small_patch16_rope_mixed_224.naver_in1k": 81.216,
    "vit_small_patch16_rope_ape_224.naver_in1k": 81.004,
    "vit_small_patch16_rope_mixed_ape_224.naver_in1k": 80.986,
}


def settings(name: str) -> PretrainedCfg:
    """What timm says of a model's weights: image size, classes, place on the Hub."""
    found = get_pretrained_cfg(name)
    assert found is not None, name
    return found


def classifiers() -> list[str]:
    names = {name for of in FAMILIES for name in timm.list_models(module=of, pretrained=True)}
    return sorted(
        name
        for name in names
        if settings(name).num_classes in HEADS and not name.startswith("test_")
    )


def count(name: str) -> tuple[int, float]:
    """A model's parameters and its GMACs for one image of its own size."""
    cfg = settings(name)
    with torch.device("meta"):
        model = timm.create_model(name).eval().requires_grad_(False)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, *cfg.input_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def measured(
    rows: list[dict[str, Any]], name: str, image_size: int, parameters: int
) -> float | None:
    """timm's top-1 in percent at the model's own image size, if it was read."""
    for row in rows:
        if row["model"] == name and int(row["img_size"]) == image_size:
            theirs = float(row["param_count"].replace(",", ""))
            assert abs(theirs - parameters / 1e6) < 0.006, (name, theirs, parameters)
            return float(row["top1"])
    return README_TOP1.get(name)


def torchvision_models() -> list[Published]:
    weights = [of for name in list_models(include="vit_*") for of in get_model_weights(name)]
    return [
        Published(
            name=f"torchvision:{of}",
            image_size=of.meta["min_size"][0],
            n_classes=len(of.meta["categories"]),
            parameters=of.meta["num_params"],
            gmacs=round(of.meta["_ops"], 2),  # multiply-adds: 17.56 for ViT-B/16, as counted here
            top1=of.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        )
        for of in weights
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    with parser.parse_args().results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    models = []
    for name in classifiers():
        cfg = settings(name)
        assert cfg.hf_hub_id == f"timm/{name}", "Published.address would not find it"
        parameters, gmacs = count(name)
        size = cfg.input_size[1]
        top1 = measured(rows, name, size, parameters) if cfg.num_classes == 1000 else None
        models.append(Published(name, size, cfg.num_classes, parameters, round(gmacs, 2), top1))
    models += torchvision_models()
    with PUBLISHED_TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Published))
        writer.writerows(astuple(model) for model in models)
    known = sum(model.top1 is not None for model in models)
    print(json.dumps({"models": len(models), "with_top1": known}))


if __name__ == "__main__":
    main()
