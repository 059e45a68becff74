"""A folder of photos for each class -> the features of each, by the way that photos are labelled.

Which photos there are, their pixels and the backbone are those of a run (find, load, predict.py);
only that the backbone computes in fp32 everywhere, so that a head does not depend on the machine
more than it must.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from jobs.keys import sort_and_drop_repeated
from pipeline.console import Console, Progress
from pipeline.errors import UsageError
from pipeline.find.scan import scan
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.path_names import display
from pipeline.settings import Settings
from pipeline.so_many import so_many
from vit.backbone import PretrainedBackbone
from vit.classifier import with_head
from vit.head import Head

from .placement import WITHOUT_WORKERS, choose_placement
from .predict import Predictor


@dataclass(frozen=True)
class Examples:
    """Photos of known classes, in path order: `features` float32 [N, F] and `targets` int64 [N]
    belong to `paths` [N], which begin with the class's folder.

    `left_out` are (path, reason).
    """

    labels: tuple[str, ...]
    paths: tuple[str, ...]
    features: Tensor
    targets: Tensor
    left_out: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many each class has."""
        counts = Counter(self.targets.tolist())
        return {label: counts[class_id] for class_id, label in enumerate(self.labels)}


def read_examples(
    folder: Path, backbone: PretrainedBackbone, at_least: int, console: Console
) -> Examples:
    """Compute the features of all photos below a folder's sub-folders, whose names are the classes.

    Left out are photos that cannot be read, that lie beside the sub-folders, and all copies of a
    photo but the first; all of them where they are in two classes. Raises UsageError where a class
    then has not `at_least` so many.
    """
    labels = _classes(folder)
    found = scan([folder])
    listing = sort_and_drop_repeated(found.listing)
    paths: list[str] = listing["path"].to_pylist()
    class_ids = {name: class_id for class_id, name in enumerate(labels)}
    targets = [class_ids.get(path.split("/")[0], -1) if "/" in path else -1 for path in paths]
    left_out = {
        index: "it lies in no class's folder" for index, target in enumerate(targets) if target < 0
    }
    taken = [index for index, target in enumerate(targets) if target >= 0]
    _check_counts(folder, labels, Counter(targets[index] for index in taken), {}, at_least)
    features: dict[int, Tensor] = {}
    hashes: dict[str, list[int]] = {}
    for seen in _look(listing.take(taken), folder, backbone, console):
        index = taken[seen.index]
        if seen.features is None:
            left_out[index] = seen.reason
        else:
            features[index] = seen.features
            hashes.setdefault(seen.content_hash, []).append(index)
    repeated = _repeated(hashes, targets, paths)
    left_out |= repeated
    features = {index: each for index, each in features.items() if index not in repeated}
    reasons = {
        labels[targets[index]]: f"{paths[index]}: {why}"
        for index, why in left_out.items()
        if targets[index] >= 0
    }
    counts = Counter(targets[index] for index in features)
    _check_counts(folder, labels, counts, reasons, at_least)
    kept = sorted(features)
    return Examples(
        labels,
        tuple(paths[index] for index in kept),
        torch.stack([features[index] for index in kept]),
        torch.tensor([targets[index] for index in kept]),
        (
            *((paths[index], left_out[index]) for index in sorted(left_out)),
            *((place, f"it cannot be listed: {why}") for (_, place), why in found.unlisted.items()),
        ),
    )


def _repeated(hashes: dict[str, list[int]], targets: list[int], paths: list[str]) -> dict[int, str]:
    """Which photos are copies of others, and why each is left out."""
    found: dict[int, str] = {}
    for same in hashes.values():
        first, *copies = sorted(same)
        if len({targets[index] for index in same}) == 1:
            found |= dict.fromkeys(copies, f"it is the same photo as {paths[first]}")
        else:  # nobody can say whose it is
            classes = sorted({paths[index].split("/")[0] for index in same})
            found |= dict.fromkeys(same, f"the same photo is in {' and in '.join(classes)}")
    return found


@dataclass(frozen=True)
class _Seen:
    index: int
    features: Tensor | None  # [F]; None where there are none, for the reason
    content_hash: str = ""
    reason: str = ""


def _look(
    listing: pa.Table, folder: Path, backbone: PretrainedBackbone, console: Console
) -> Iterator[_Seen]:
    """Each image's features, as batches come."""
    n = len(listing)
    placement = choose_placement(Settings(precision="fp32", runtime="torch", compile=False), n)
    # A Predictor runs whole classifiers; the head that is still to be made is stood in for.
    n_features = backbone.model.config.n_features
    stand_in = Head(torch.zeros(1, n_features), torch.zeros(1))
    classifier = with_head(backbone, stand_in, ("",))
    settings = Settings()
    dataset = BatchDataset(listing, n, backbone.preprocess, settings.max_pixels, places=[folder])
    sampler = ShardBatchSampler(n, n, [0], placement.batch_size)
    workers = 0 if n <= WITHOUT_WORKERS else placement.workers
    batches = load_batches(dataset, sampler, workers, console, settings.image_timeout)
    predict = Predictor(classifier, placement, 1, console, keeps_features=True)
    with Progress(console, n, 0) as progress:
        for batch in batches:
            predictions = predict(batch)
            assert predictions.features is not None
            for row, index in enumerate(batch.indices):
                if predictions.is_finite[row]:
                    features = torch.from_numpy(predictions.features[row].copy())
                    yield _Seen(index, features, batch.facts[row].content_hash or str(index))
                else:
                    yield _Seen(index, None, reason="the model's output was not finite")
            for failure in batch.failures:
                yield _Seen(failure.index, None, reason=f"{failure.code}: {failure.detail}")
            progress.advance(len(batch), len(batch) - int(predictions.is_finite.sum()))


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of a folder's sub-folders, in order. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder; name one that has a sub-folder of photos for each class"
        )
    with os.scandir(folder) as entries:
        names = sorted(
            display(entry.name)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )
    if len(names) < 2:
        found = f"one sub-folder, {names[0]}" if names else "no sub-folder"
        raise UsageError(
            f"{folder} has {found}: it should have one of photos for each class, at least two"
        )
    return tuple(names)


def _check_counts(
    folder: Path,
    labels: tuple[str, ...],
    counts: Counter[int],
    reasons: dict[str, str],
    at_least: int,
) -> None:
    for class_id, label in enumerate(labels):
        if counts[class_id] < at_least:
            reason = f" (left out is {reasons[label]})" if label in reasons else ""
            raise UsageError(
                f"the class {label} has {so_many(counts[class_id], 'photo')} that can be used{reason}, and "
                f"each needs at least {at_least}, better 20: add some to {folder / label}, or move "
                "that folder away"
            )
