"""What is published of each Vision Transformer that classifies: size, cost and accuracy.

Read from a table (data/README.md: where each number comes from, and of when), without building a
network or importing torch: by it a user chooses what to download. Whether this tool builds a model
is config.py's to say.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from vit.config import variant
from vit.errors import ModelError

PUBLISHED_TABLE = Path(__file__).parent / "data" / "published-models.csv"


@dataclass(frozen=True)
class Published:
    """A published model, by timm's name for it, or as torchvision:WEIGHTS.

    `gmacs` are billions of multiply-adds an image; `top1` is percent of ImageNet's validation
    images right, None where that was not read or does not apply.
    """

    name: str
    image_size: int
    n_classes: int
    parameters: int
    gmacs: float
    top1: float | None

    @property
    def address(self) -> str:
        """What --model takes for it."""
        return self.name if self.name.startswith("torchvision:") else f"hf-hub:timm/{self.name}"

    @property
    def size_mb(self) -> float:
        """Megabytes of its weights in float32."""
        return self.parameters * 4 / 1e6

    @property
    def unsupported(self) -> str | None:
        """Why this tool does not build it; None where it does."""
        if self.name.startswith("torchvision:"):
            return None
        try:
            variant(self.name)
        except ModelError as error:
            return str(error)
        return None


def published_models(name: str = "") -> list[Published]:
    """All of them, or those of a name: a whole one, an address, or an architecture's."""
    with PUBLISHED_TABLE.open(encoding="utf-8", newline="") as file:
        models = [
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
    return [
        model
        for model in models
        if name in ("", model.name, model.address, model.name.split(".")[0])
    ]


def best_for_their_cost(models: list[Published]) -> set[str]:
    """The names of those that no other one beats in accuracy for as few multiply-adds or fewer."""
    best, names = 0.0, set()
    for model in sorted(models, key=lambda model: (model.gmacs, -(model.top1 or 0))):
        if (model.top1 or 0) > best:
            best = model.top1 or 0
            names.add(model.name)
    return names
