"""Counts what changed between two tables, piece by piece, in memory that does not grow with them.

DIFFERING   rows that differ, as `diff --out` writes them
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.storage.object_store import AnyPath
from pipeline.errors import LabelImagesError, TableError
from pipeline.table.labels import LABELS
from pipeline.table.table import read_record

from .diff import Change, Confidence, Counts, Diff, Example, Side
from .in_step import Piece, in_step, only_root
from .label_spaces import LabelSpaces, label_spaces

CHANGES_KEPT = 200  # the most frequent ones
EXAMPLES_KEPT = 12  # of each

# What became of a row.
RELABELLED, FAILED, MENDED, OTHER_ERROR = "relabelled", "failed", "mended", "other_error"
DIFFERING = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),  # in the new table
        pa.field("path", pa.string(), nullable=False),
        pa.field("what", pa.string(), nullable=False),
        pa.field("old_label", pa.string()),
        pa.field("new_label", pa.string()),
        pa.field("old_probability", pa.float32()),
        pa.field("new_probability", pa.float32()),
        pa.field("old_error_code", pa.string()),
        pa.field("new_error_code", pa.string()),
    ]
)
# And their numbers in both tables.
_NUMBERED = DIFFERING.append(pa.field("old_row", pa.int64())).append(
    pa.field("new_row", pa.int64())
)
_COUNTS = tuple(each.name for each in fields(Counts))


def compare_tables(
    old: AnyPath,
    new: AnyPath,
    mapping: str | None = None,
    take: Callable[[pa.Table], None] | None = None,
) -> Diff:
    """Compare two tables; let `take` have the rows that differ (DIFFERING), some at a time, in key
    order.

    Raises TableError for what is no table or is damaged, UsageError for a `mapping` (of
    label_spaces.py) that does not fit, LabelImagesError where a run replaced a table meanwhile.
    """
    sides = Side.read(old), Side.read(new)
    spaces = label_spaces(sides[0].labels, sides[1].labels, mapping)
    roots = only_root(old), only_root(new)
    by_path = None not in roots and roots[0] != roots[1]
    tally = _Tally(spaces)
    for piece in in_step(old, new, by_path):
        rows = tally.add(piece)
        if take is not None and len(rows):
            take(rows.select(DIFFERING.names))
    for side in sides:
        # Rows of two nights, or another night's than the sides say, may have been counted.
        if read_record(side.place, LABELS) != side.record:
            raise LabelImagesError(f"a run has replaced {side.place} meanwhile; do it again")
    return tally.diff(sides, by_path)


class _Tally:
    def __init__(self, spaces: LabelSpaces) -> None:
        self.spaces = spaces
        self.is_comparable, self.unchanged = spaces.is_comparable(), spaces.unchanged()
        self.counts = Counter[str]()
        self.confidence, self.confidence_of_changed = Confidence(), Confidence()
        # Each pair of labels that rows changed between, as a code of `spaces`, and how many did.
        self.codes, self.rows = np.array([], np.int64), np.array([], np.int64)
        self.examples: dict[int, list[Example]] = {}
        self.failures: dict[tuple[str, str, str], Change] = {}

    def add(self, piece: Piece) -> pa.Table:
        """Count a piece; return its rows that differ (_NUMBERED)."""
        same = piece.is_same_file
        n_same = int(same.sum())
        self.counts.update(only_old=piece.only_old, only_new=piece.only_new)
        self.counts.update(compared=n_same, other_file=len(same) - n_same)
        old, new = (rows.filter(pa.array(same)) for rows in (piece.old, piece.new))
        was_ok, is_ok = (pc.equal(rows["status"], "ok").to_numpy() for rows in (old, new))
        both = np.flatnonzero(was_ok & is_ok)
        codes, is_changed = self._labels(*(rows.take(both) for rows in (old, new)))
        what = np.full(n_same, None, object)
        what[both[is_changed]] = RELABELLED
        what[was_ok & ~is_ok] = FAILED
        what[~was_ok & is_ok] = MENDED
        # Of labelled rows the codes are null, and nothing that is null is unequal.
        other = pc.fill_null(pc.not_equal(old["error_code"], new["error_code"]), False)
        what[other.to_numpy()] = OTHER_ERROR
        rows = _differing(old, new, pa.array(what, pa.string()))
        self._count(codes[is_changed])
        self._exemplify(codes[is_changed], rows.filter(pc.equal(rows["what"], RELABELLED)))
        self._failures(rows.filter(pc.not_equal(rows["what"], RELABELLED)))
        return rows

    def _labels(self, old: pa.Table, new: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of rows that have a label in both tables: the pair of labels as a code, and whether they
        differ.
        """
        was, now = _numbers(old["label"], self.spaces.old), _numbers(new["label"], self.spaces.new)
        comparable, codes = self.is_comparable[was], self.spaces.codes(was, now)
        changed = comparable & ~np.isin(codes, self.unchanged)
        self.counts.update(both_ok=len(codes), comparable=int(comparable.sum()))
        self.counts.update(changed=int(changed.sum()))
        before, after = (rows["probability"].to_numpy() for rows in (old, new))
        self.confidence.add(before, after)
        self.confidence_of_changed.add(before[changed], after[changed])
        return codes, changed

    def _count(self, codes: NDArray[np.int64]) -> None:
        now, rows = np.unique(codes, return_counts=True)
        self.codes, place = np.unique(np.concatenate([self.codes, now]), return_inverse=True)
        self.rows = np.bincount(place, np.concatenate([self.rows, rows])).astype(np.int64)

    def _most_frequent(self) -> NDArray[np.int64]:
        """Where in `codes` the most frequent changes are: by rows, then by number."""
        return np.lexsort((self.codes, -self.rows))[:CHANGES_KEPT]

    def _exemplify(self, codes: NDArray[np.int64], rows: pa.Table) -> None:
        """Keep examples, of the changes that are the most frequent so far.

        One that is so in the end is so, too, when its last row is counted: it has an example.
        """
        order = np.argsort(codes, kind="stable")
        for code in self.codes[self._most_frequent()].tolist():
            first, end = np.searchsorted(codes, [code, code + 1], sorter=order)
            kept = self.examples.setdefault(code, [])
            kept += _examples(rows.take(order[first:end][: EXAMPLES_KEPT - len(kept)]))

    def _failures(self, rows: pa.Table) -> None:
        names = ["what", "old_error_code", "new_error_code"]
        for group in rows.group_by(names).aggregate([([], "count_all")]).to_pylist():
            is_such = pc.equal(rows["what"], group["what"])
            for name in names[1:]:
                if group[name] is not None:
                    is_such = pc.and_(is_such, pc.equal(rows[name], group[name]))
            key = group["what"], group["old_error_code"] or "ok", group["new_error_code"] or "ok"
            so_far = self.failures.get(key, Change(*key[1:], 0))
            some = rows.filter(is_such).slice(0, EXAMPLES_KEPT - len(so_far.examples))
            self.failures[key] = Change(
                *key[1:], so_far.rows + group["count_all"], so_far.examples + _examples(some)
            )

    def diff(self, sides: tuple[Side, Side], by_path: bool) -> Diff:
        places = self._most_frequent()
        changes = [
            Change(*self.spaces.names(code), rows, self.examples[code])
            for code, rows in zip(
                self.codes[places].tolist(), self.rows[places].tolist(), strict=True
            )
        ]
        of_failures = {
            what: _most_first(
                change for (kind, *_), change in self.failures.items() if kind == what
            )
            for what in (FAILED, MENDED, OTHER_ERROR)
        }
        return Diff(
            *sides,
            self.spaces,
            by_path,
            Counts(**{name: self.counts[name] for name in _COUNTS}),
            changes=changes,
            confidence=self.confidence,
            confidence_of_changed=self.confidence_of_changed,
            failed=of_failures[FAILED],
            mended=of_failures[MENDED],
            other_errors=of_failures[OTHER_ERROR],
        )


def _most_first(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: (-change.rows, change.old, change.new))


def _numbers(labels: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.int64]:
    """The class number of each label. Raises TableError for a label that no class has."""
    numbers = pc.index_in(labels, value_set=pa.array(names, pa.string()))
    if numbers.null_count:
        raise TableError(
            "a label is not the name of one of its table's classes: the table is not as "
            "label-images wrote it; `label-images verify TABLE` names the place"
        )
    return numbers.to_numpy().astype(np.int64)


def _differing(old: pa.Table, new: pa.Table, what: pa.Array) -> pa.Table:
    """The rows that have a `what`."""
    is_kept = pc.is_valid(what)
    old, new = old.filter(is_kept), new.filter(is_kept)
    columns = [new["root"], new["path"], what.drop_null()]
    for name in ("label", "probability", "error_code"):
        columns += [old[name], new[name]]
    return pa.table([*columns, old["row"], new["row"]], schema=_NUMBERED)


def _examples(rows: pa.Table) -> list[Example]:
    return [Example(**row) for row in rows.drop_columns(["what"]).to_pylist()]
