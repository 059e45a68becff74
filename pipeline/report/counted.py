"""What a report says in numbers: of all rows of a table, counted in one pass, a batch at a time.

No row has a Python object of its own but the few examples of failures. Which photos are to be shown
is chosen in the same pass, by row number (sampled.py).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import TableError

from .sampled import Smallest
from .tables import OpenTable

N_BINS = 20  # of the confidence, each 5% wide
EXAMPLES = 100  # of failed rows, for each reason
DOUBTFUL_MARGIN = 0.1  # between the first class and the second: below, a photo counts as doubtful
BEST_OF_FOLDER = 3

_COLUMNS = ["root", "path", "status", "error_code", "error_detail", "class_id", "probability"]
_TOP = "top_k.list.element.probability"


@dataclass(frozen=True)
class FailedRow:
    root: str
    path: str
    detail: str


@dataclass(frozen=True)
class Folder:
    """`best` are its most frequent classes, as (class_id, photos)."""

    root: str
    folder: str
    rows: int
    failed: int
    mean: float  # probability of the labelled
    best: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Counted:
    """`by_class` int64 [K], `sums` float64 [K] of the probabilities, `bins` int64 [K, N_BINS].

    `n_doubtful` is of all rows; `examples` are the first failed rows by reason. `most` and `least`
    are the most and least certain of each class, `doubtful` the rows between two answers; by row
    number.
    """

    rows: int
    by_class: np.ndarray
    sums: np.ndarray
    bins: np.ndarray
    n_doubtful: int
    errors: Mapping[str, int]
    examples: Mapping[str, Sequence[FailedRow]]
    folders: Sequence[Folder]
    n_folders: int
    most: Smallest
    least: Smallest
    doubtful: Sequence[int]

    @property
    def labelled(self) -> int:
        return int(self.by_class.sum())

    @property
    def failed(self) -> int:
        return self.rows - self.labelled

    @property
    def mean(self) -> float:
        return float(self.sums.sum()) / max(self.labelled, 1)


def count(
    table: OpenTable, n_classes: int, is_sigmoid: bool, n_photos: int, n_folders: int
) -> Counted:
    """Count a table. `n_photos` a class and of the doubtful are chosen, at most; of its folders
    those with the most photos are kept.
    """
    by_class = np.zeros(n_classes, np.int64)
    sums, bins = np.zeros(n_classes), np.zeros((n_classes, N_BINS), np.int64)
    errors: dict[str, int] = defaultdict(int)
    examples: dict[str, list[FailedRow]] = defaultdict(list)
    most, least, doubts = Smallest(n_photos), Smallest(n_photos), Smallest(n_photos)
    folders, first, n_doubtful = _Folders(), 0, 0
    for batch in table.batches([*_COLUMNS, _TOP]):
        is_ok = pc.equal(batch["status"], "ok")
        ok = batch.filter(is_ok)
        numbers = first + np.flatnonzero(is_ok.to_numpy(zero_copy_only=False))
        classes, probability = (
            ok[name].to_numpy(zero_copy_only=False) for name in ("class_id", "probability")
        )
        if len(classes) and not 0 <= classes.min() <= classes.max() < n_classes:
            raise TableError(
                f"{table.path} has a class_id that is none of its classes: it is damaged; see "
                f"`label-images verify {table.path}`"
            )
        probability = probability.astype(np.float64)
        by_class += np.bincount(classes, minlength=n_classes)
        sums += np.bincount(classes, probability, n_classes)
        bin_of = np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1)
        flat = np.bincount(classes * N_BINS + bin_of, minlength=bins.size)
        bins += flat.reshape(bins.shape)
        most.add(classes, -probability, numbers)
        least.add(classes, probability, numbers)
        doubt = _doubt(ok["top_k"], probability, is_sigmoid)
        n_doubtful += int((doubt < DOUBTFUL_MARGIN).sum())
        is_known = np.isfinite(doubt)
        doubts.add(np.zeros(is_known.sum(), np.int64), doubt[is_known], numbers[is_known])
        _count_errors(batch.filter(pc.invert(is_ok)), errors, examples)
        folders.add(batch)
        first += len(batch)
    kept, n_all = folders.largest(n_folders)
    return Counted(
        first, by_class, sums, bins, n_doubtful, dict(sorted(errors.items())), dict(examples), kept,
        n_all, most, least, doubts.of(0, n_photos),
    )  # fmt: skip


def _doubt(top_k: pa.Array, probability: np.ndarray, is_sigmoid: bool) -> np.ndarray:
    """How near each row was to another answer, float64: the margin between its first class and its
    second; of a sigmoid, whose classes are each by itself, twice how far the first is from 0.5. NaN
    where there is no second.
    """
    if is_sigmoid:
        return 2 * np.abs(probability - 0.5)
    lengths = pc.list_value_length(top_k).fill_null(0).to_numpy(zero_copy_only=False)
    entries = top_k.flatten().field("probability").to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    margin = np.full(len(probability), np.nan)
    has_second = lengths > 1
    margin[has_second] = probability[has_second] - entries[starts[has_second] + 1]
    return margin


def _count_errors(
    failed: pa.RecordBatch, errors: dict[str, int], examples: dict[str, list[FailedRow]]
) -> None:
    for entry in pc.value_counts(failed["error_code"]).to_pylist():
        code = entry["values"]
        errors[code] += entry["counts"]
        missing = EXAMPLES - len(examples[code])
        if missing > 0:
            of = failed.filter(pc.equal(failed["error_code"], code)).slice(0, missing)
            examples[code] += [
                FailedRow(row["root"], row["path"], row["error_detail"] or "")
                for row in of.select(["root", "path", "error_detail"]).to_pylist()
            ]


class _Folders:
    """Counts rows by the folder or archive they lie in."""

    def __init__(self) -> None:
        self.counts: list[pa.Table] = []
        self.classes: list[pa.Table] = []

    def add(self, batch: pa.RecordBatch) -> None:
        folder = pc.replace_substring_regex(batch["path"], "/?[^/]*$", "", max_replacements=1)
        is_ok = pc.equal(batch["status"], "ok").cast(pa.int64())
        rows = pa.table(
            {
                "root": batch["root"], "folder": folder, "ok": is_ok,
                "sum": batch["probability"].cast(pa.float64()), "class_id": batch["class_id"],
                "rows": pa.repeat(1, len(batch)),
            }
        )  # fmt: skip
        sums = [(name, "sum") for name in ("rows", "ok", "sum")]
        self.counts.append(_grouped(rows, ["root", "folder"], sums))
        labelled = rows.filter(pc.is_valid(rows["class_id"]))
        self.classes.append(_grouped(labelled, ["root", "folder", "class_id"], [("rows", "sum")]))

    def largest(self, most: int) -> tuple[list[Folder], int]:
        """The folders with the most rows, in their order, and how many there are in all."""
        if not self.counts:
            return [], 0
        sums = [(name, "sum") for name in ("rows", "ok", "sum")]
        counts = _grouped(pa.concat_tables(self.counts), ["root", "folder"], sums)
        order = [("rows", "descending"), ("root", "ascending"), ("folder", "ascending")]
        kept = counts.sort_by(order).slice(0, most)
        classes = pa.concat_tables(self.classes).join(
            kept.select(["root", "folder"]), ["root", "folder"], join_type="inner"
        )
        classes = _grouped(classes, ["root", "folder", "class_id"], [("rows", "sum")])
        best: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for row in classes.sort_by([("rows", "descending"), ("class_id", "ascending")]).to_pylist():
            of = best[row["root"], row["folder"]]
            if len(of) < BEST_OF_FOLDER:
                of.append((row["class_id"], row["rows"]))
        folders = [
            Folder(
                row["root"], row["folder"], row["rows"], row["rows"] - row["ok"],
                (row["sum"] or 0.0) / max(row["ok"], 1), best[row["root"], row["folder"]],
            )
            for row in kept.to_pylist()
        ]  # fmt: skip
        return sorted(folders, key=lambda each: (each.root, each.folder)), len(counts)


def _grouped(rows: pa.Table, keys: list[str], sums: list[tuple[str, Any]]) -> pa.Table:
    """Group rows and add up columns, which keep their names."""
    grouped = rows.group_by(keys).aggregate(sums)
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
