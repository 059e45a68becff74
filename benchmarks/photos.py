"""Photos for benchmarks, made here out of those in examples/photos: no network, no data set.

    write_photos(folder, n)            n JPEGs of 500 x 375 pixels and about 110 KB, as ImageNet's are
    large_photo(seed)                  one of 4000 x 3000 pixels and some 3 MB

Each is a part of a real photo, enlarged, with a camera's grain: JPEG's time goes into the
coefficients that are not zero, and an enlarged photo without grain has next to none. The same seed
gives the same photo.
"""

import io
import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = (500, 375)
LARGE = (4000, 3000)
SMALL_BYTES = 110_000
_EXAMPLES = Path(__file__).parent.parent / "examples" / "photos"
_NAMES = ("chelsea.jpg", "coffee.jpg", "hubble.jpg", "astronaut.webp")
_GRAIN = 5.0  # standard deviation, of 255; ISO 800 or so
_DIFFERENT = 200  # files of their own; more photos than that are links to them


def write_photos(folder: Path, n: int) -> Path:
    """Write `n` photos of about 110 KB into a new folder; return it."""
    files = folder.with_name(f"{folder.name}-files")
    folder.mkdir(parents=True)
    files.mkdir()
    for place in range(n):
        file = files / f"{place % _DIFFERENT:03}.jpg"
        if place < _DIFFERENT:
            file.write_bytes(small_photo(place))
        os.link(file, folder / f"{place:06}.jpg")
    return folder


def small_photo(seed: int) -> bytes:
    """A JPEG of 500 x 375 pixels, of the quality that makes it about 110 KB."""
    picture = _picture(seed, SMALL)
    low, high = 60, 98
    while low < high:
        quality = (low + high) // 2
        if len(_encode(picture, quality)) < SMALL_BYTES:
            low = quality + 1
        else:
            high = quality
    return _encode(picture, low)


def large_photo(seed: int) -> bytes:
    """A JPEG of 12 megapixels."""
    return _encode(_picture(seed, LARGE), 88)


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(seed)
    photo = _example(_NAMES[seed % len(_NAMES)])
    part = random.uniform(0.6, 1.0)  # of its width
    width, height = int(photo.width * part), min(int(photo.width * part * 0.75), photo.height)
    left, top = (
        int(random.integers(0, rest + 1)) for rest in (photo.width - width, photo.height - height)
    )
    resized = photo.resize(
        size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    values = np.asarray(resized, np.float32)  # [H, W, 3]
    grain = random.standard_normal(values.shape[:2], np.float32)[:, :, None] * _GRAIN
    return Image.fromarray((values + grain).clip(0, 255).astype(np.uint8))


def _encode(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@cache
def _example(name: str) -> Image.Image:
    return Image.open(_EXAMPLES / name).convert("RGB")
