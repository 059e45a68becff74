"""Sample: one image, decoded to the model's size."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.failures import ImageFacts


@dataclass(frozen=True)
class Sample:
    """One decoded image: `pixels` uint8 [C, crop_size, crop_size]."""

    index: int
    pixels: Tensor
    facts: ImageFacts
