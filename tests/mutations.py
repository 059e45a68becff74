"""Damaged files by number: seeds of each format, cut, flipped and spliced.

The same number gives the same file.
"""

import functools
import io
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers import photo
from tests.raw_photos import dng, jpeg_preview


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """A small file of each kind that is read."""
    from pillow_heif import from_pillow

    colour, grey = photo(1, 90, 60), photo(2, 90, 60, "L")
    frames = [photo(seed, 40, 30) for seed in range(3)]
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    animated = {"save_all": True, "append_images": frames[1:]}
    heic = io.BytesIO()
    from_pillow(colour).save(heic, quality=60)
    return (
        _saved(colour, "JPEG", exif=exif), _saved(colour, "JPEG", progressive=True), _saved(grey, "JPEG"),
        _saved(colour.convert("CMYK"), "JPEG"), _saved(colour, "JPEG", subsampling=0, optimize=True),
        _saved(colour, "PNG"), _saved(grey.convert("I;16"), "PNG"), _saved(colour.quantize(20), "PNG", transparency=3),
        _saved(frames[0], "PNG", **animated), _saved(colour.convert("RGBA"), "PNG"), _saved(colour, "WEBP"),
        _saved(colour, "WEBP", lossless=True), _saved(frames[0], "WEBP", **animated),
        _saved(frames[0], "GIF", **animated),
        _saved(colour, "BMP"), _saved(colour.quantize(16), "BMP"), _saved(colour, "TIFF"),
        _saved(colour, "TIFF", compression="tiff_lzw"), _saved(colour, "TIFF", compression="jpeg"),
        _saved(grey.convert("F"), "TIFF"), _saved(frames[0], "TIFF", **animated),
        _saved(grey.convert("1"), "TIFF", compression="group4"), _saved(colour, "AVIF"), heic.getvalue(),
        dng(colour, 6), dng(colour, 8, jpeg_preview(colour), ">"),
    )  # fmt: skip


def mutated(number: int) -> bytes:
    """The bytes of damaged file `number`; one in ten is a whole one."""
    generator = random.Random(number)
    data = bytearray(generator.choice(seeds()))
    if generator.random() < 0.1:
        return bytes(data)
    for _ in range(generator.choice([1, 1, 2, 3])):
        _mutate(data, generator)
    return bytes(data)


def _mutate(data: bytearray, generator: random.Random) -> None:
    kind = generator.choice(
        ["bits", "bytes", "header", "cut", "zeros", "splice", "repeat", "insert", "number"]
    )
    place = generator.randrange(max(len(data), 1))
    length = min(generator.choice([1, 4, 16, 100, 1000]), max(len(data) - place, 1))
    if not data:
        data += b"\0"
    elif kind == "bits":
        for _ in range(generator.choice([1, 3, 20])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "bytes":
        data[place : place + length] = generator.randbytes(length)
    elif kind == "header":
        data[generator.randrange(min(64, len(data)))] = generator.choice([0, 1, 127, 128, 255])
    elif kind == "cut":
        del data[place:]
    elif kind == "zeros":
        data[place : place + length] = bytes(length)
    elif kind == "splice":
        other = generator.choice(seeds())
        data[place : place + length] = other[place : place + length]
    elif kind == "repeat":
        data[place:place] = data[place : place + length] * generator.choice([1, 5])
    elif kind == "insert":
        data[place:place] = generator.randbytes(length)
    else:  # a number of the format's, at one of its limits
        value = generator.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
        data[place : place + 4] = value.to_bytes(4, generator.choice(["big", "little"]))


def make_mutated(folder: Path, n: int) -> Path:
    """Write damaged files 0 to n-1, a thousand in a folder, under names that say nothing of their
    format.
    """
    for number in range(n):
        below = folder / f"{number // 1000:03}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:06}.jpg").write_bytes(mutated(number))
    return folder
