"""The benchmarks run, at toy size: what they measure is not looked at, that they measure it is."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.decode import PREPROCESS, fraction_of, pillow, whole
from benchmarks.photos import SMALL_BYTES, small_photo, write_photos
from pipeline.load.decode import decode_image, register_formats
from pipeline.load.sample import Sample


def run(module: str, *arguments: str | Path) -> Any:
    """Run a benchmark as a process and return the record that its last line is."""
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_photos_are_of_the_size_they_are_named_for(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 3)
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    assert len(sizes) == 3
    assert all(0.8 < size / SMALL_BYTES < 1.2 for size in sizes)
    assert small_photo(0) == small_photo(0) != small_photo(1)


@pytest.mark.parametrize("size", [(500, 375), (1999, 1501)])
def test_another_decoder_goes_the_whole_way_to_the_same_pixels(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    register_formats()
    file = tmp_path / "a.jpg"
    with Image.open(io.BytesIO(small_photo(1))) as photo:
        photo.resize(size).save(file)
    sample = decode_image(0, file.read_bytes(), PREPROCESS, 10**8)
    assert isinstance(sample, Sample)
    assert (fraction_of(*size, PREPROCESS) > 1) == ("scaled_decode" in sample.facts.notes)
    theirs = whole(lambda data, fraction: np.asarray(pillow(data, fraction)), file)
    assert (theirs == sample.pixels).all()


@pytest.mark.slow
def test_decode() -> None:
    record = run("decode", "--photos", "1", "--large", "1", "--rounds", "1")
    assert (record["small"]["fraction"], record["large"]["fraction"]) == (1, 4)
    assert record["large"]["whole_ms"]["Pillow"] > 0
    assert "damaged in its middle" in record["pixels"]
