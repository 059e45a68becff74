"""Labelled images for training, all in memory as uint8: Parquet tables, or a folder of class
folders.

For data sets that fit: 100,000 images of 64 pixels are 1.2 GB, of 224 pixels 15 GB. Labelling
photos does not come by here; it streams (pipeline/load/loader.py). The pixels are the same
(vit/pixels.py), but that large JPEGs are decoded whole here.
"""

import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vit.checkpoints.bundle import read_labels
from vit.errors import ModelError
from vit.pixels import load_stored
from vit.preprocess import Preprocess

from .soft_targets import SoftTargets

# The most of a data set that may be left out because it cannot be read: one in so many.
_ONE_UNREADABLE_IN = 100
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, C, H, W] and the class of each, int64 [N].

    `unreadable` names those that are not among them, each with its error. `soft` is what a teacher
    says of them.
    """

    images: Tensor
    targets: Tensor
    unreadable: tuple[str, ...] = ()
    soft: SoftTargets | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Classes:
    """Class names in class order, with ids (such as WordNet's) beside them or none."""

    labels: tuple[str, ...]
    ids: tuple[str, ...] = ()


def read_images(paths: Iterable[Path], preprocess: Preprocess, classes: Classes) -> LabelledImages:
    """Read tables (columns `image`: encoded bytes, `label`: class_id) and folders of class folders.

    Every image is resized and cropped as `preprocess` says. Images that cannot be read are left out
    and named, up to one in a hundred: more are a data set that is not what it was taken for. Raises
    ModelError.
    """
    sources: list[Callable[[], Image.Image]] = []
    targets: list[int] = []
    names: list[str] = []
    for path in paths:
        found = _from_folder(path, classes) if path.is_dir() else _from_table(path)
        for name, open_image, class_id in found:
            names.append(name)
            sources.append(open_image)
            targets.append(class_id)
    wrong = [class_id for class_id in targets if not 0 <= class_id < len(classes.labels)]
    if wrong:
        raise ModelError(
            f"there are labels up to {max(wrong)} but {len(classes.labels)} class names; give "
            "them all"
        )
    if not sources:
        raise ModelError(
            f"no images in {', '.join(map(str, paths))}; give Parquet tables or folders of class "
            "folders"
        )
    images = torch.empty(
        len(sources),
        preprocess.in_chans,
        preprocess.crop_size,
        preprocess.crop_size,
        dtype=torch.uint8,
    )

    def decode(index: int) -> str:
        """Returns why the image cannot be read, or nothing."""
        try:
            with sources[index]() as image:
                notes: list[str] = []  # of a table; a training has no use for them
                images[index] = load_stored(image, notes).to_input(preprocess, notes)
        except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file provokes
            return f"{names[index]}: {type(error).__name__}: {error}"[:500]
        return ""

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        done = pool.map(decode, range(len(sources)))
        errors = list(tqdm(done, total=len(sources), desc="read", unit="img", disable=None))
    unreadable = tuple(filter(None, errors))
    if len(unreadable) * _ONE_UNREADABLE_IN > len(sources):
        raise ModelError(
            f"{len(unreadable):,} of {len(sources):,} images cannot be read: "
            f"{'; '.join(unreadable[:3])}{' ...' if len(unreadable) > 3 else ''}. Take them out "
            f"or mend them; only up to one in {_ONE_UNREADABLE_IN} is left out without being asked"
        )
    kept = [index for index, error in enumerate(errors) if not error]
    for place, index in enumerate(
        kept
    ):  # moved up one by one: a copy of all might not fit into memory
        if place != index:
            images[place] = images[index]
    return LabelledImages(images[: len(kept)], torch.tensor(targets)[kept], unreadable)


def read_classes(file: Path | None, data: Path) -> Classes:
    """Read class names from a file, or take them from the folders of `data`.

    The file has one name a line, or is a JSON list of names or of objects with `name` (the first of
    several names separated by commas counts) and `wnid` or `id`.
    """
    if file is None:
        names = (
            tuple(sorted(folder.name for folder in data.iterdir() if folder.is_dir()))
            if data.is_dir()
            else ()
        )
        if not names:
            raise ModelError(
                f"{data} says nothing of its classes; give their names with --classes FILE"
            )
        return Classes(names)
    if file.suffix == ".json":
        entries = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(entries, list) and entries and isinstance(entries[0], dict):
            labels = tuple(entry["name"].split(",")[0].strip() for entry in entries)
            return Classes(labels, tuple(entry.get("wnid") or entry["id"] for entry in entries))
    return Classes(read_labels(file))


def _open(data: pa.Scalar) -> Image.Image:
    return Image.open(io.BytesIO(data.as_py()))


def _from_table(path: Path) -> Iterable[tuple[str, Callable[[], Image.Image], int]]:
    try:
        table = pq.read_table(path, columns=["image", "label"])
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} is not a table of images with the columns image and label: {error}"
        ) from error
    for row, (data, label) in enumerate(zip(table["image"], table["label"], strict=True)):
        class_id = label.as_py()
        if not isinstance(class_id, int):
            raise ModelError(
                f"{path}: the label of row {row} is {class_id!r}; labels are class numbers, from 0"
            )
        yield f"{path} row {row}", partial(_open, data), class_id


def _from_folder(
    folder: Path, classes: Classes
) -> Iterable[tuple[str, Callable[[], Image.Image], int]]:
    for class_id, name in enumerate(classes.ids or classes.labels):
        for path in sorted((folder / name).glob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield str(path), partial(Image.open, path), class_id
