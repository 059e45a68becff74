"""Proof of what lies beside a table of labels: embeddings are those of its images, and of no others.

Both are in the order of their keys, and are read side by side a batch at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.manifest import Fingerprint
from jobs.storage.object_store import AnyPath, as_arrow, at
from pipeline.errors import TableError

from .labels import LABELS
from .match import is_in_step
from .record import TableRecord, damaged
from .table import files_of, read_record

_STATE = ("size_bytes", "mtime", "content_hash")
_COLUMNS = ["root", "path", *_STATE]
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Beside:
    """`problems` are what a run would not have left so; `notices` what the next run brings in step."""

    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def compare_with_labels(path: AnyPath, record: TableRecord) -> Beside:
    """Compare a product's keys, and which state of its file each row is of, with the table of labels
    that it says it lies beside. Raises TableError where that cannot be read or is not there.
    """
    if record.labels_at is None:
        return Beside()
    name, labels_at = record.product.name, at(record.labels_at)
    labels = read_record(labels_at, LABELS)
    if labels is None:
        raise TableError(
            f"{path}: by themselves the {name} are whole, but there is no table at "
            f"{record.labels_at}, whose labels they are beside. Is everything mounted? Where the "
            f"table has moved or is gone for good, remove {path}: the next run with --{name} makes "
            "them anew"
        )
    found = _compare(path, labels_at)
    others = [
        f"{n:,} {name} of {what}"
        for n, what in ((found.foreign, "no labelled image"), (found.outdated, "another state of their image"))
        if n
    ]  # fmt: skip
    lacking = [f"{found.lacking:,} labelled images without"] if found.lacking else []
    fingerprint = Fingerprint.from_record(labels.fingerprint_fields)
    if fingerprint and record.product.decided_by(fingerprint) != record.fingerprint_fields:
        others.insert(0, f"{name} of another model")
    if is_in_step(record.product, path, labels):
        # A row that was kept of what could not be looked at may lack one: no fault.
        problems = [
            f"beside {record.labels_at}: {text}, though one run wrote both" for text in others
        ]
        notices = [f"beside {record.labels_at}: {text}" for text in lacking]
        return Beside(problems, notices)
    if not others + lacking:
        return Beside()
    text = (
        f"not in step with {record.labels_at}: {', '.join(others + lacking)}; the next run with "
        f"--{name} {path} brings them in step"
    )
    return Beside(notices=[text])


@dataclass(frozen=True)
class _Counts:
    """Rows of no labelled image, rows of another state of theirs, and labelled images without one."""

    foreign: int
    outdated: int
    lacking: int


def _compare(path: AnyPath, labels_at: AnyPath) -> _Counts:
    labels, foreign, outdated, n_labels, n_found = _Labels(labels_at), 0, 0, 0, 0
    for batch in _batches(path, _COLUMNS):
        n, theirs = labels.up_to(batch)
        n_labels += n
        place = pc.index_in(_keys(batch), value_set=_keys(theirs))
        is_there = pc.is_valid(place)
        ours, same = batch.filter(is_there), theirs.take(place.drop_null())
        n_found += len(ours)
        foreign += len(batch) - len(ours)
        outdated += len(ours) - (pc.sum(_is_same_state(ours, same)).as_py() or 0)
    n_labels += labels.count_rest()
    return _Counts(foreign, outdated, n_labels - n_found)


def _is_same_state(ours: pa.Table, theirs: pa.Table) -> pa.ChunkedArray:
    """Of two tables of the same images: whether size, time and bytes are alike, as far as both say."""
    same = None
    for name in _STATE:
        is_equal = pc.fill_null(pc.equal(ours[name], theirs[name]), True)
        same = is_equal if same is None else pc.and_(same, is_equal)
    return same


class _Labels:
    """The labelled rows of a table, one after the other, as many as are asked for."""

    def __init__(self, path: AnyPath) -> None:
        self.batches = _labelled(path)
        self.rest: pa.Table | None = None

    def up_to(self, batch: pa.Table) -> tuple[int, pa.Table]:
        """Go to the last key of a batch: how many rows there are on the way, and those of them whose
        keys the batch has.
        """
        keys, found, n_rows = _keys(batch), [batch.slice(0, 0)], 0
        last = keys[len(keys) - 1]
        while (
            rows := self.rest if self.rest is not None else next(self.batches, None)
        ) is not None:
            n = pc.sum(pc.less_equal(_keys(rows), last)).as_py() or 0
            n_rows += n
            head = rows.slice(0, n)
            found.append(head.filter(pc.is_in(_keys(head), value_set=keys)).select(_COLUMNS))
            self.rest = rows.slice(n) if n < len(rows) else None
            if self.rest is not None:
                break
        return n_rows, pa.concat_tables(found)

    def count_rest(self) -> int:
        return (len(self.rest) if self.rest is not None else 0) + sum(map(len, self.batches))


def _labelled(path: AnyPath) -> Iterator[pa.Table]:
    for rows in _batches(path, [*_COLUMNS, "status"]):
        yield rows.filter(pc.equal(rows["status"], "ok")).drop_columns("status")


def _batches(path: AnyPath, columns: list[str]) -> Iterator[pa.Table]:
    """Some rows after the other, each of those some columns; those that a table of an earlier version
    has not are null.
    """
    for path_of_file in files_of(path):
        try:
            with pq.ParquetFile(as_arrow(path_of_file), page_checksum_verification=True) as file:
                there = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=there):
                    rows = pa.table(batch)
                    for name in columns:
                        if name not in there:
                            rows = rows.append_column(name, pa.nulls(len(rows), pa.string()))
                    if len(rows):
                        yield rows.select(columns)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path_of_file, error, path) from error


def _keys(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(rows["root"], rows["path"], "\0").combine_chunks()
