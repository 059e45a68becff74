"""Sample: one image, decoded to the model's size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.failures import ImageFacts

if TYPE_CHECKING:  # whoever makes thumbnails alone needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One decoded image: `pixels` uint8 [C, crop_size, crop_size]."""

    index: int
    pixels: "Tensor"
    facts: ImageFacts
