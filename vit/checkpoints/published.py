"""What is published of each Vision Transformer that classifies: size, cost and accuracy.

Read from a table (data/README.md: where each number comes from, and of when), without building a
network or importing torch: a user chooses by it what to download. Whether this tool builds a model
is config.py's to say.
"""

import csv
from pathlib import Path
from typing import NamedTuple

PUBLISHED_TABLE = Path(__file__).parent / "data" / "published-models.csv"


class Published(NamedTuple):
    """One of timm's published models; `hf-hub:timm/NAME` loads it.

    `gmacs` are billions of multiply-adds an image, `top1` percent of ImageNet's validation images
    right, None where that was not read or does not apply.
    """

    name: str
    image_size: int
    n_classes: int
    parameters: int
    gmacs: float
    top1: float | None


def published_models() -> list[Published]:
    """All of them, by name."""
    with PUBLISHED_TABLE.open(encoding="utf-8", newline="") as file:
        return [
            Published(
                name=row["name"],
                image_size=int(row["image_size"]),
                n_classes=int(row["n_classes"]),
                parameters=int(row["parameters"]),
                gmacs=float(row["gmacs"]),
                top1=float(row["top1"]) if row["top1"] else None,
            )
            for row in csv.DictReader(file)
        ]
