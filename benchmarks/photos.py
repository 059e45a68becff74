"""Photos for benchmarks, made here out of those in examples/photos: no network, no data set.

    write_photos(folder, n)    n JPEGs of 500 x 375 pixels and about 110 KB, as ImageNet's are
    make_links(folder, n)      n names of one of those
    large_photo(seed)          one of 4000 x 3000 pixels and some 3 MB
    make_photos(source, ...)   sets of a kind, out of a folder of JPEGs: small, large or mixed

Each of the first two is a part of a real photo, enlarged, with a camera's grain: JPEG's time goes into the
coefficients that are not zero, and an enlarged photo without grain has next to none. The same seed
gives the same photo.
"""

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SMALL = (500, 375)
LARGE = (4000, 3000)
SMALL_BYTES = 110_000
_EXAMPLES = Path(__file__).parent.parent / "examples" / "photos"
_NAMES = ("chelsea.jpg", "coffee.jpg", "hubble.jpg", "astronaut.webp")
_GRAIN = 5.0  # standard deviation, of 255; ISO 800 or so
_FILES = 200  # pictures; more photos than that show one of them again
_DIFFERENT = 24  # pictures made of each kind; the set is filled up with them


def write_photos(folder: Path, n: int) -> Path:
    """Write `n` photos of about 110 KB into a new folder; return it."""
    folder.mkdir(parents=True)
    photos = list[bytes]()
    for place in range(n):
        if place < _FILES:
            photos.append(small_photo(place))
        path = folder / f"{place:06}.jpg"
        path.write_bytes(unlike_others(photos[place % _FILES], place))
    return folder


def unlike_others(data: bytes, place: int) -> bytes:
    """An image's bytes with a number after its end, which decoders do not look at: exact copies are
    labelled once.
    """
    return data + place.to_bytes(8)


def make_links(folder: Path, n: int) -> Path:
    """Fill a new folder with `n` links to one photo, for runs that do not read it; return it."""
    folder.mkdir(parents=True)
    photo = folder.with_name("one.jpg")
    photo.write_bytes(small_photo(0))
    for place in range(n):
        # A file may have some 65,000 links on ext4.
        if place % 30_000 == 0 and place:
            photo = folder.with_name(f"one-{place}.jpg")
            photo.write_bytes(small_photo(0))
        os.link(photo, folder / f"{place:08}.jpg")
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


def make_photos(source: Path, kind: str, n: int, out: Path) -> Path:
    """Make a folder of `n` photos of a kind out of the JPEGs in `source`."""
    originals = sorted(
        path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
    )
    folder, made = out / kind, out / f"{kind}-files"
    folder.mkdir()
    made.mkdir()
    if kind == "small":
        files = originals
    else:
        chosen = originals[: min(_DIFFERENT, n)]
        files = [_make_photo(path, kind, place, made) for place, path in enumerate(chosen)]
    for place in range(n):
        file = files[place % len(files)]
        path = folder / f"{place:06}{file.suffix}"
        path.write_bytes(unlike_others(file.read_bytes(), place))
    return folder


def _make_photo(path: Path, kind: str, place: int, made: Path) -> Path:
    image = Image.open(path).convert("RGB")
    large = image.resize(LARGE, Image.Resampling.BICUBIC)
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (large, ".jpg", {"quality": 90}),
        (image, ".png", {}),
        (image, ".webp", {"quality": 85}),
        (image, ".jpg", {"quality": 90, "progressive": True}),
        (image.convert("CMYK"), ".jpg", {"quality": 90}),
        (image, ".jpg", {"quality": 90}),
    ]
    picture, suffix, options = variants[0] if kind == "large" else variants[place % len(variants)]
    file = made / f"{place:03}{suffix}"
    picture.save(file, **options)
    return file
