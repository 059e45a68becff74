"""Recipe: what fixes a training beside its data and its architecture; and its learning rate."""

import math
from dataclasses import dataclass, field
from typing import Any

from vit.errors import ModelError


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """What fixes a training beside its data and its architecture.

    The defaults suit a few hundred epochs.
    """

    epochs: float = _setting(300.0, "times each image is seen")
    batch_size: int = _setting(512, "images a step")
    lr: float = _setting(2e-3, "highest learning rate, of AdamW and (scaled to match) of Muon")
    weight_decay: float = _setting(0.05, "decoupled weight decay, of matrices only")
    warmup: float = _setting(0.03, "share of the steps in which the learning rate rises")
    decay: float = _setting(
        1.0,
        "share of the steps after those in which it falls to 0; 0: it stays, and a training from "
        "--start is to end it",
    )
    label_smoothing: float = _setting(0.1, "share of the target that all classes get")
    crop_area: float = _setting(0.25, "smallest share of an image that a random crop shows")
    strength: float = _setting(0.5, "0 to 1: rotation, shear, brightness, contrast, saturation")
    erase: float = _setting(0.25, "probability of random erasing")
    mix: float = _setting(0.5, "share of the steps with mixup or cutmix")
    keep: float = _setting(0.5, "share of the patches that most steps see")
    full: float = _setting(
        0.2, "share of the steps, the last ones, that see all patches and are not mixed"
    )
    average: float = _setting(
        0.999, "how much of the average of the weights a step leaves in place"
    )
    distil: float = _setting(0.0, "share of the loss that is a teacher's; takes --soft-targets")
    distil_temperature: float = _setting(
        1.0, "what the logits of teacher and student are divided by"
    )
    seed: int = _setting(0, "fixes initial weights, order of the images and augmentation")

    def __post_init__(self) -> None:
        for name in ("decay", "distil"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"{name} is {getattr(self, name)}; it must be a share, 0 to 1")
        if not self.distil_temperature > 0:
            raise ModelError(f"distil_temperature is {self.distil_temperature}; it must be above 0")


def learning_rate(done: float, recipe: Recipe) -> float:
    """The learning rate when a share `done` of the steps is done: a linear rise, a time at the top
    (none by default), and half a cosine down to 0.

    The time at the top is the same whatever follows, so one long training can be ended at any of
    its checkpoints (Hägele et al. 2024, arXiv:2405.18392).
    """
    if done < recipe.warmup:
        return recipe.lr * done / recipe.warmup
    falls = recipe.decay * (1 - recipe.warmup)  # share of all steps
    fallen = (done - (1 - falls)) / falls if falls else 0.0
    return recipe.lr * (0.5 + 0.5 * math.cos(math.pi * max(0.0, fallen)))
