"""Preprocess, the values that turn a photo into a model's input, and the two functions that use it.

    fit_image        PIL image -> uint8 [C, H, W]      in a loader worker
    normalise        uint8 batch -> float batch         on the model's device

Between them images stay uint8: a quarter of the bytes to move. Opening files, orientation and
colour conversion happen before (pixels.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MOST_PIXELS = 65_536  # of one side; a configuration that lies must cost no memory
HALF = (0.5, 0.5, 0.5)  # maps 0..255 to -1..1
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")

FITS = ("crop", "squash", "border")

_MOST_ELONGATED = 4

# What Pillow's Image.transpose does, for pixels [C, H, W].
_TURNS: dict[Image.Transpose, Callable[[Tensor], Tensor]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda pixels: pixels.flip(2),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda pixels: pixels.flip(1),
    Image.Transpose.ROTATE_180: lambda pixels: pixels.flip(1, 2),
    Image.Transpose.TRANSPOSE: lambda pixels: pixels.transpose(1, 2),
    Image.Transpose.TRANSVERSE: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    Image.Transpose.ROTATE_90: lambda pixels: pixels.rot90(1, (1, 2)),
    Image.Transpose.ROTATE_270: lambda pixels: pixels.rot90(-1, (1, 2)),
}

# The Pillow mode that has as many channels as the model takes.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes a model's input.

    `fit="crop"` resizes the shorter side to `resize_size`, "squash" both sides, ignoring the aspect
    ratio; then the centre `crop_size` x `crop_size` is cut out. "border" resizes the longer side,
    and fills up with the mean where that is not enough. Pixels become (x / 255 - mean) / std.
    """

    crop_size: int
    resize_size: int
    fit: str = "crop"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))  # JSON gives lists
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.fit not in FITS:
            raise ModelError(f"fit is {self.fit!r}; choose one of {', '.join(FITS)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ModelError(
                f"interpolation is {self.interpolation!r}; choose one of "
                f"{', '.join(INTERPOLATIONS)}"
            )
        least = 1 if self.fit == "border" else self.crop_size
        if self.crop_size < 1 or not least <= self.resize_size <= _MOST_PIXELS:
            raise ModelError(
                f"a crop of {self.crop_size} pixels does not fit an image resized to "
                f"{self.resize_size}"
            )
        finite = all(map(math.isfinite, self.mean + self.std))
        if (
            len(self.mean) != len(self.std)
            or not finite
            or not all(value > 0 for value in self.std)
        ):
            raise ModelError(
                f"mean {self.mean} and std {self.std} must have one value a channel, and std be "
                "above 0"
            )

    @property
    def in_chans(self) -> int:
        return len(self.mean)

    def describe(self) -> str:
        """In words, for a person."""
        sides = {"crop": "shorter side", "squash": "both sides", "border": "longer side"}
        cropped = f", the middle {self.crop_size} pixels" * (self.crop_size != self.resize_size)
        return (
            f"{sides[self.fit]} to {self.resize_size} pixels{cropped}, {self.interpolation}, mean "
            f"{_short(self.mean)}, std {_short(self.std)}"
        )


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


PRESETS = ("vit", "squash", "deit", "torchvision", "swag")


def preset(name: str, img_size: int, in_chans: int = 3) -> Preprocess:
    """Return a well-known preprocessing for `img_size` pixels, for checkpoints that carry none.

    vit          shorter side to size / 0.9, centre crop, bicubic, -1..1   timm's vit_*_224 (1.0 from 384 on)
    squash       both sides to size, bilinear, -1..1                      Google's and transformers' ViT
    deit         shorter side to size * 256/224, bicubic, ImageNet mean    DeiT
    torchvision  shorter side to size * 256/224, bilinear, ImageNet mean   torchvision's vit_b_16
    swag         shorter side to size, bicubic, ImageNet mean              torchvision's SWAG weights
    """
    if name not in PRESETS:
        raise ModelError(f"unknown preprocessing {name!r}; choose one of {', '.join(PRESETS)}")
    if name == "squash":
        return Preprocess(
            img_size, img_size, "squash", "bilinear", HALF[:1] * in_chans, HALF[:1] * in_chans
        )
    if name == "vit":
        resize_size = img_size if img_size >= 384 else int(img_size / 0.9)
        return Preprocess(
            img_size, resize_size, "crop", "bicubic", HALF[:1] * in_chans, HALF[:1] * in_chans
        )
    if in_chans != 3:
        raise ModelError(
            f"preprocessing {name!r} is for 3 channels and the model takes {in_chans}; choose vit"
        )
    interpolation = "bilinear" if name == "torchvision" else "bicubic"
    resize_size = img_size if name == "swag" else img_size * 256 // 224
    return Preprocess(img_size, resize_size, "crop", interpolation, IMAGENET_MEAN, IMAGENET_STD)


def fit_image(
    image: Image.Image,
    preprocess: Preprocess,
    extent: tuple[float, float] | None = None,
    turn: Image.Transpose | None = None,
) -> Tensor:
    """Resize, turn and crop an image of mode L, RGB or RGBA to uint8 [C, crop_size, crop_size].

    `extent` is the width and height of the part, from the top left, that is picture: a JPEG of 375
    pixels decoded at half its size is 187.5 wide and has 188. Resized without that, its edges lie
    half a pixel off, and labels differ from those of the whole image.

    Antialiased, with torchvision's sizes and rounding. torch resizes uint8 tensors about twice as
    fast as Pillow resizes images; Lanczos and an extent only Pillow has, and torch's nearest pixel
    is another one than Pillow's, which timm and transformers take.
    """
    if loses_its_ends(image, preprocess):
        image, extent = _cut_ends(image), None
    whole_width, whole_height = extent or image.size
    height, width = _resized(whole_height, whole_width, preprocess)
    if (
        preprocess.interpolation in ("lanczos", "nearest")
        or (whole_width, whole_height) != image.size
    ):
        resample = Image.Resampling[preprocess.interpolation.upper()]
        image = image.resize((width, height), resample, box=(0, 0, whole_width, whole_height))
    n_channels, pixels = len(image.getbands()), _pixels(image)
    if pixels.shape[1:] != (height, width):
        # The kernel torchvision's resize ends in; importing torchvision here would cost two seconds
        # a start.
        pixels = F.interpolate(
            pixels[None], size=(height, width), mode=preprocess.interpolation, antialias=True
        )[0]
    if turn is not None:
        pixels = _TURNS[turn](pixels)
        height, width = pixels.shape[1:]
    size = preprocess.crop_size
    pixels = pixels[:n_channels]
    if preprocess.fit == "border":
        pixels = _with_border(pixels, preprocess)
        height, width = pixels.shape[1:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[:, top : top + size, left : left + size]  # [C, crop_size, crop_size]


def _with_border(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Fill [C, H, W] up to at least crop_size x crop_size, the picture in the middle."""
    size, (height, width) = preprocess.crop_size, pixels.shape[1:]
    above, left = max(size - height, 0) // 2, max(size - width, 0) // 2
    colour = torch.tensor([round(255 * value) for value in preprocess.mean]).clamp(0, 255)
    filled = colour.to(torch.uint8)[:, None, None].repeat(1, max(height, size), max(width, size))
    filled[:, above : above + height, left : left + width] = pixels
    return filled


def _pixels(image: Image.Image) -> Tensor:
    """The pixels of an L, RGB or RGBA image, uint8 [1, H, W] or [4, H, W], where they lie: not to
    be written to.

    Pillow keeps RGB with a fourth byte a pixel. Taking it along is faster than copying the other
    three out: resizing a photo of 0.9 megapixels to 224 pixels took 1.0 ms instead of 2.6.
    """
    shape = image.height, image.width, -1
    try:
        values = pa.array(image)
    except ValueError:  # a very large image lies in several pieces of memory
        return torch.from_numpy(np.array(image).reshape(shape)).permute(2, 0, 1)
    values = values.values if isinstance(values, pa.FixedSizeListArray) else values
    return from_dlpack(values).reshape(shape).permute(2, 0, 1)


def _resized(height: float, width: float, preprocess: Preprocess) -> tuple[int, int]:
    size = preprocess.resize_size
    if preprocess.fit == "squash":
        return size, size
    if preprocess.fit == "border":
        ratio = max(height, width) / size
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    shorter = min(height, width)
    return (
        (size, int(size * width / shorter))
        if height <= width
        else (int(size * height / shorter), size)
    )


def loses_its_ends(image: Image.Image, preprocess: Preprocess) -> bool:
    """Whether an image is so long that its ends are cut off before it is resized."""
    return preprocess.fit == "crop" and max(image.size) > _MOST_ELONGATED * min(image.size)


def _cut_ends(image: Image.Image) -> Image.Image:
    """Cut an image of extreme shape to its middle, four times as long as wide.

    Only the middle is seen, and resizing the shorter side of 30,000 x 10 pixels would make
    millions.
    """
    limit = _MOST_ELONGATED * min(image.size)
    left, top = (max(0, (side - limit) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def normalise(images: Tensor, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 [B, C, H, W] (0..255) to (x / 255 - mean) / std in `dtype`, on the images'
    device.
    """
    scale = torch.tensor(preprocess.std, device=images.device).mul(255).reciprocal()[:, None, None]
    shift = (torch.tensor(preprocess.mean) / torch.tensor(preprocess.std)).to(images.device)[
        :, None, None
    ]
    return (images * scale - shift).to(
        dtype
    )  # uint8 * float32 is float32: rounded once, at the end
