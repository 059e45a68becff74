"""A model is trained on the pixels it is shown later: images with a turn, transparency or depth."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.load.decode import decode_image
from pipeline.load.sample import Sample
from tests.helpers import photo
from vit.preprocess import Preprocess
from vit.training.labelled_images import Classes, read_images


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format_name, **options)
    return data.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(photo(3, 90, 44), "JPEG", quality=95, exif=exif)


def transparent() -> Image.Image:
    image = Image.new("RGBA", (60, 44), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 20, 40))
    return image


RAMP = np.linspace(0, 65535, 60 * 44).reshape(44, 60)
IMAGES = {
    "turned right": turned(6),
    "mirrored": turned(5),
    "transparent": encoded(transparent(), "PNG"),
    "palette with transparency": encoded(transparent().quantize(8), "PNG"),
    "16 bits": encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "CMYK": encoded(photo(3, 60, 44).convert("CMYK"), "JPEG", quality=95),
    "float": encoded(Image.fromarray((RAMP / 70 - 500).astype(np.float32)), "TIFF"),
    "plain": encoded(photo(3, 60, 44), "JPEG", quality=95),
}


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES)
def test_training_sees_the_pixels_that_labelling_sees(
    tmp_path: Path, data: bytes, n_channels: int
) -> None:
    half = (0.5,) * n_channels
    preprocess = Preprocess(32, 36, "crop", mean=half, std=half)
    pq.write_table(pa.table({"image": [data], "label": [0]}), tmp_path / "t.parquet")
    trained = read_images([tmp_path / "t.parquet"], preprocess, Classes(("a",))).images[0]
    served = decode_image(0, data, preprocess, max_pixels=1_000_000)
    assert isinstance(served, Sample), served
    assert torch.equal(trained, served.pixels)
