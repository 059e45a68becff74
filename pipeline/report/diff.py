"""What changed between two tables of the same photos: another model's, or another night's.

Rows are compared where root and path are the same and the file is (in_step.Piece.is_same_file);
of two tables with one root each, which differ, the path below it is the key. Labels are each
table's best class, compared by name (label_spaces.py). Nothing is read of the photos. tally.py
makes a Diff.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.storage.object_store import AnyPath
from pipeline.errors import TableError
from pipeline.table.labels import LABELS
from pipeline.table.record import TableRecord
from pipeline.table.table import read_classes, read_record

from .label_spaces import LabelSpaces

_BINS = np.linspace(0, 1, 11)  # of probabilities


@dataclass(frozen=True)
class Example:
    """A photo whose row differs: its place, what stood and stands in its row, and the row's number
    in both tables.
    """

    root: str
    path: str
    old_label: str | None
    new_label: str | None
    old_probability: float | None
    new_probability: float | None
    old_error_code: str | None
    new_error_code: str | None
    old_row: int
    new_row: int

    def to_record(self) -> dict[str, Any]:
        """But for the numbers, which the next run changes."""
        said = asdict(self)
        return {name: value for name, value in said.items() if not name.endswith("_row")}


@dataclass(frozen=True)
class Change:
    """So many rows went from one label, or error code, to another (`ok`: any label); a few of
    them, in key order.
    """

    old: str
    new: str
    rows: int
    examples: list[Example] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        examples = [each.to_record() for each in self.examples]
        return {"old": self.old, "new": self.new, "rows": self.rows, "examples": examples}


@dataclass
class Confidence:
    """The probabilities of the best class, before and after, of rows that have a label in both."""

    rows: int = 0
    old_sum: float = 0.0
    new_sum: float = 0.0
    old_histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(10, np.int64))
    new_histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(10, np.int64))

    def add(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> None:
        self.rows += len(old)
        self.old_sum += float(old.sum())
        self.new_sum += float(new.sum())
        self.old_histogram += np.histogram(old, _BINS)[0]
        self.new_histogram += np.histogram(new, _BINS)[0]

    def to_record(self) -> dict[str, Any]:
        """Means, null of no rows, and how many rows are in each tenth of 0 to 1."""
        return {
            "rows": self.rows,
            "old_mean": round(self.old_sum / self.rows, 6) if self.rows else None,
            "new_mean": round(self.new_sum / self.rows, 6) if self.rows else None,
            "old_histogram": self.old_histogram.tolist(),
            "new_histogram": self.new_histogram.tolist(),
        }


@dataclass(frozen=True)
class Side:
    """One of both tables."""

    place: AnyPath
    record: TableRecord
    labels: tuple[str, ...]

    @property
    def activation(self) -> str:
        return str(self.record.fingerprint_fields.get("activation", "softmax"))

    @classmethod
    def read(cls, place: AnyPath) -> "Side":
        """Raises TableError for what is no table of labels."""
        record = read_record(place, LABELS)
        if record is None:
            raise TableError(f"there is no table at {place}")
        return cls(place, record, tuple(entry["label"] for entry in read_classes(place)))

    def to_record(self) -> dict[str, Any]:
        return {
            "table": str(self.place),
            "model": self.record.model,
            "fingerprint": self.record.fingerprint,
            "written_at": self.record.created_at,
            "classes": len(self.labels),
            "rows": self.record.counts["rows"],
        }


@dataclass(frozen=True)
class Counts:
    """`compared` rows are of the same file in both tables; the others are `only_old`, `only_new`,
    or of an `other_file` under the same name. Of the compared ones `both_ok` have a label in both,
    and of those `comparable` have labels that can be compared; `changed` is how many of these
    differ.
    """

    compared: int
    only_old: int
    only_new: int
    other_file: int
    both_ok: int
    comparable: int
    changed: int


@dataclass(frozen=True)
class Diff:
    """What changed. `by_path`: the roots differ, and the paths below them are compared."""

    old: Side
    new: Side
    spaces: LabelSpaces
    by_path: bool
    counts: Counts
    changes: list[Change]  # the most frequent first
    confidence: Confidence
    confidence_of_changed: Confidence
    failed: list[Change]  # labelled before, and now failed
    mended: list[Change]  # failed before, and now labelled
    other_errors: list[Change]

    @property
    def changed_share(self) -> float | None:
        return self.counts.changed / self.counts.comparable if self.counts.comparable else None

    def to_record(self) -> dict[str, Any]:
        """For programs (docs/report.md)."""
        share = self.changed_share
        return {
            "old": self.old.to_record(),
            "new": self.new.to_record(),
            "by_path": self.by_path,
            "same_classes": self.spaces.is_one,
            "counts": asdict(self.counts),
            "changed_share": None if share is None else round(share, 6),
            "changes": [change.to_record() for change in self.changes],
            "confidence": self.confidence.to_record(),
            "confidence_of_changed": self.confidence_of_changed.to_record(),
            "failed": [change.to_record() for change in self.failed],
            "mended": [change.to_record() for change in self.mended],
            "other_errors": [change.to_record() for change in self.other_errors],
        }
