"""Would another decoder of JPEGs than Pillow be faster, and would its pixels be the same?

    python -m benchmarks.decode [--photos 40] [--large 4] [--rounds 5]

Photos of 110 KB and of 12 megapixels are made here (benchmarks/photos.py). `decode` is from bytes
to pixels alone, at the fraction of its size that a run would decode it at; `whole` from the file to
the model's pixels, with all that a run needs: the hash of its bytes, the header's size and
orientation (both Pillow's), and the resize. Milliseconds of computing time an image on one core, in
turns, medians of the rounds. Then kinds of JPEGs, odd and damaged: what each library makes of them
beside Pillow: the same pixels, a largest difference, or a refusal. Libraries that are not installed
are left out (pip install simplejpeg opencv-python-headless imagecodecs PyTurboJPEG; the last needs
libturbojpeg, or its path in TURBOJPEG). The last line is JSON.
"""

import argparse
import importlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image, features
from torch import Tensor

from pipeline.load.decode import SCALED_DECODE_MARGIN, decode_image, register_formats
from pipeline.settings import DEFAULT_MAX_PIXELS
from vit.pixels import load_stored
from vit.preprocess import Preprocess, fit_image, preset

from .jpeg_kinds import jpeg_kinds
from .photos import large_photo, small_photo

# Bytes and the fraction (1, 2, 4 or 8) -> pixels [H, W, 3 or 4], or [H, W] of a grey one.
Decode = Callable[[bytes, int], Any]

PREPROCESS = preset("vit", 224)


def pillow(data: bytes, fraction: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    least = min(image.width // fraction, image.height // fraction) if fraction > 1 else None
    return load_stored(image, [], least).image


def _simplejpeg(library: Any) -> Decode:
    def decode(data: bytes, fraction: int) -> Any:
        height, width, *_ = library.decode_jpeg_header(data)
        sides = (-(-height // fraction), -(-width // fraction)) if fraction > 1 else (0, 0)
        return library.decode_jpeg(data, "RGBX", min_height=sides[0], min_width=sides[1])

    return decode


def _opencv(library: Any) -> Decode:
    library.setNumThreads(1)
    flags = {
        1: library.IMREAD_COLOR_RGB,
        2: library.IMREAD_REDUCED_COLOR_2,  # BGR: 5.0 has no reduced RGB
        4: library.IMREAD_REDUCED_COLOR_4,
        8: library.IMREAD_REDUCED_COLOR_8,
    }

    def decode(data: bytes, fraction: int) -> Any:
        how = flags[fraction] | library.IMREAD_IGNORE_ORIENTATION
        pixels = library.imdecode(np.frombuffer(data, np.uint8), how)
        if pixels is None:
            raise ValueError("refused")
        return pixels if fraction == 1 else np.ascontiguousarray(pixels[:, :, ::-1])

    return decode


def _imagecodecs(library: Any) -> Decode:
    def decode(data: bytes, fraction: int) -> Any:
        return library.jpeg8_decode(data)  # decodes at full size alone

    return decode


def _turbojpeg(library: Any) -> Decode:
    turbo = library.TurboJPEG(os.environ.get("TURBOJPEG"))

    def decode(data: bytes, fraction: int) -> Any:
        return turbo.decode(data, library.TJPF_RGBX, (1, fraction) if fraction > 1 else None)

    return decode


_OTHERS: dict[str, tuple[str, str, Callable[[Any], Decode]]] = {
    "simplejpeg": ("simplejpeg", "simplejpeg", _simplejpeg),
    "PyTurboJPEG": ("turbojpeg", "PyTurboJPEG", _turbojpeg),
    "OpenCV": ("cv2", "opencv-python-headless", _opencv),
    "imagecodecs": ("imagecodecs", "imagecodecs", _imagecodecs),
}


def installed() -> tuple[dict[str, Decode], dict[str, str]]:
    """The other libraries that are here, by name, and their versions; why not, of those missing."""
    found, versions = {}, {}
    for name, (module, package, make) in _OTHERS.items():
        try:
            found[name] = make(importlib.import_module(module))
            versions[name] = version(package)
        except (ImportError, OSError, RuntimeError, PackageNotFoundError) as error:
            versions[name] = f"left out: {str(error).splitlines()[0]}"
    return found, versions


def fraction_of(width: int, height: int, preprocess: Preprocess) -> int:
    """At which fraction of its size a run decodes a JPEG, as Pillow's `draft` chooses it."""
    least = SCALED_DECODE_MARGIN * preprocess.resize_size
    return max((f for f in (2, 4, 8) if min(width, height) // f >= least), default=1)


def whole(decode: Decode, file: Path) -> Tensor:
    """A file's pixels for the model by another decoder, with what a run asks of the file."""
    data = file.read_bytes()
    xxhash.xxh3_128_hexdigest(data)
    image = Image.open(io.BytesIO(data), formats=["JPEG"])  # its header alone
    image.getexif()
    width, height = image.size
    fraction = fraction_of(width, height, PREPROCESS)
    pixels = decode(data, fraction)
    mode = "RGBX" if pixels.shape[-1] == 4 else "RGB"
    if mode == "RGBX":
        taken = Image.frombuffer(mode, pixels.shape[1::-1], pixels, "raw", mode, 0, 1)
    else:
        taken = Image.fromarray(pixels)
    extent = None if pixels.shape[0] == height else (width / fraction, height / fraction)
    return fit_image(taken, PREPROCESS, extent)[:3]  # [3, crop_size, crop_size]


def ours(file: Path) -> Any:
    sample = decode_image(0, file.read_bytes(), PREPROCESS, DEFAULT_MAX_PIXELS)
    return sample.pixels  # type: ignore[union-attr]


def measure(photos: list[bytes], others: dict[str, Decode], rounds: int) -> dict[str, Any]:
    """Milliseconds an image, `decode` and `whole`, of Pillow and each other library."""
    decoders: dict[str, Decode] = {"Pillow": pillow, **others}
    times: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in decoders} for what in ("decode", "whole")
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.jpg" for place in range(len(photos))]
        for file, data in zip(files, photos, strict=True):
            file.write_bytes(data)
        with Image.open(files[0]) as first:
            fraction = fraction_of(*first.size, PREPROCESS)
        for round_ in range(rounds + 1):
            for name, decode in decoders.items():
                began = time.thread_time()
                for data in photos:
                    decode(data, fraction)
                halfway = time.thread_time()
                for file in files:
                    ours(file) if name == "Pillow" else whole(decode, file)
                ended = time.thread_time()
                if round_:  # the first one warms up
                    times["decode"][name].append((halfway - began) / len(photos) * 1000)
                    times["whole"][name].append((ended - halfway) / len(photos) * 1000)
    result: dict[str, Any] = {
        "mean_bytes": sum(map(len, photos)) // len(photos),
        "fraction": fraction,
    }
    for what, by_name in times.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        result[f"{what}_ms"] = {name: round(median, 3) for name, median in medians.items()}
        result[f"{what}_ratio"] = {
            name: round(median / medians["Pillow"], 3) for name, median in medians.items()
        }
    return result


def same_pixels(others: dict[str, Decode]) -> dict[str, dict[str, str]]:
    """By kind of JPEG and library: `same`, how large the largest difference is, or a refusal."""
    found: dict[str, dict[str, str]] = {}
    for kind, (data, fraction) in jpeg_kinds().items():
        try:
            expected: Any = np.asarray(pillow(data, fraction).convert("RGB"))
        except OSError:
            expected = None
        found[kind] = {
            name: _beside(expected, decode, data, fraction) for name, decode in others.items()
        }
    return found


def _beside(expected: Any, decode: Decode, data: bytes, fraction: int) -> str:
    try:
        pixels = np.asarray(decode(data, fraction))
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        return "refused by both" if expected is None else f"refused ({type(error).__name__})"
    if expected is None:
        return "pixels where Pillow refuses"
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if pixels.shape[:2] != expected.shape[:2]:
        return "another size: {} x {}".format(*pixels.shape[1::-1])
    difference = np.abs(pixels[:, :, :3].astype(int) - expected.astype(int)).max()
    return f"differs by {difference}" if difference else "same"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=40, help="of 110 KB")
    parser.add_argument("--large", type=int, default=4, help="of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    register_formats()
    others, versions = installed()
    result = {
        "small": measure(
            [small_photo(n) for n in range(arguments.photos)], others, arguments.rounds
        ),
        "large": measure(
            [large_photo(n) for n in range(arguments.large)], others, arguments.rounds
        ),
    }
    for kind, measured in result.items():
        print(f"{kind}: {measured['mean_bytes']:,} bytes each, decoded at 1/{measured['fraction']}")
        for name in measured["decode_ms"]:
            print(
                f"  {name:<14} decode {measured['decode_ms'][name]:8.3f} ms "
                f"({measured['decode_ratio'][name]:.2f})   whole {measured['whole_ms'][name]:8.3f} ms "
                f"({measured['whole_ratio'][name]:.2f})"
            )
    pixels = same_pixels(others)
    for kind, by_library in pixels.items():
        print(f"{kind:<26}", "; ".join(f"{name} {what}" for name, what in by_library.items()))
    print(
        json.dumps(
            {
                "benchmark": "decode",
                **result,
                "pixels": pixels,
                "versions": {
                    "pillow": version("pillow"),
                    "its libjpeg-turbo": features.version("libjpeg_turbo"),
                    **versions,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
