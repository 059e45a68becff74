"""What tests share beside fixtures: pictures, weights and rows."""

import errno
import io
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent

Command = Callable[..., subprocess.CompletedProcess[str]]


def photo(seed: int, width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture that differs from seed to seed: a smooth gradient and a bright disc."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    corners = generator.uniform(0, 255, (3, 3))
    pixels = (
        corners[0] * (x / width)[..., None] + corners[1] * (y / height)[..., None] + corners[2]
    ) / 2
    centre = generator.uniform(0.2, 0.8, 2) * (width, height)
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (min(width, height) / 4) ** 2
    pixels[disc] = generator.uniform(0, 255, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def make_photos(folder: Path, n: int) -> Path:
    """Photos 0000.jpg and so on; in folders of other names they are others, and no copies."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0 if folder.name == "photos" else zlib.crc32(os.fsencode(folder.name)) % 10_000 * 1_000
    for number in range(n):
        photo(first + number).save(folder / f"{number:04}.jpg")
    return folder


def peaked_(model: torch.nn.Module, scale: float = 0.5) -> None:
    """Give a network weights that make its outputs differ clearly from image to image."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=scale / parameter[0].numel() ** 0.25)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.02)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let no file whose name starts so be opened with Path.open, as where the user has no right to
    (root has all).
    """
    really_open = io.open

    def refused(file: object, *arguments: Any, **settings: Any) -> Any:
        if Path(str(file)).name.startswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return really_open(file, *arguments, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", refused)


def rows(table: Path, without: tuple[str, ...] = ("run_id", "labelled_at")) -> list[dict[str, Any]]:
    """A table's rows, but for the columns that say when they were made."""
    return pq.read_table(table).drop_columns(list(without)).to_pylist()
