"""The merge: rows carried over from the table as it was, and rows of parts, in key order.

A pass over both, a row group at a time, so that memory does not grow with the table.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.arrow import read_parquet
from jobs.storage.atomic import atomic_output
from jobs.storage.object_store import REQUESTS_AT_ONCE, AnyPath, as_arrow

from .product import Product
from .record import TableRecord, damaged


class Merge:
    """What a new table is made of.

    `kept` are the row numbers of the old table to carry over, in the order of the new one;
    `positions` the places in the new one of the parts' rows, by index; of the rows of some `indices`
    alone where given.
    `carry` makes of kept rows, which it is given one table after the other, in order, what they are
    in the new table.
    """

    def __init__(
        self,
        kept: np.ndarray,
        positions: np.ndarray,
        parts: "Parts",
        indices: np.ndarray | None = None,
        carry: Callable[[pa.Table], pa.Table] | None = None,
    ) -> None:
        self.carry = carry
        self.kept = kept
        order = np.argsort(positions, kind="stable")
        self.by_position = order if indices is None else indices[order]
        self.positions = positions[order]
        self.parts = parts
        self.product = parts.product
        self.n_rows = len(kept) + len(positions)

    @property
    def reorders(self) -> bool:
        """Whether kept rows stand in another order than before, since roots moved."""
        return bool((np.diff(self.kept) < 0).any())

    def carried(self, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Kept rows as they are in the new table."""
        return map(self.carry, rows) if self.carry else rows

    def position_of_kept(self, number: int) -> int:
        """The place in the new table of the row that is carried over as the `number`th, before
        which others may be new.

        New rows right before it are counted as before it.
        """
        return int(number + np.searchsorted(self._kept_before_new, number, side="right"))

    @cached_property
    def _kept_before_new(self) -> np.ndarray:
        return self.positions - np.arange(len(self.positions))

    def groups(self, start: int, end: int, old_rows: "Stream") -> Iterator[pa.Table]:
        """Yield the rows of the new table from `start` to `end`, a row group at a time.

        `old_rows` gives the carried over ones among them, one after the other.
        """
        for first in range(start, end, self.product.row_group_rows):
            n = min(self.product.row_group_rows, end - first)
            lo, hi = np.searchsorted(self.positions, [first, first + n])
            is_new = np.zeros(n, dtype=bool)
            is_new[self.positions[lo:hi] - first] = True
            n_new = int(hi - lo)
            rows = pa.concat_tables(
                [old_rows.read(n - n_new), self.parts.take(self.by_position[lo:hi])]
            )
            order = np.empty(n, dtype=np.int64)
            order[~is_new] = np.arange(n - n_new)
            order[is_new] = np.arange(n - n_new, n)
            yield rows.take(pa.array(order))


def write_merged(
    out: AnyPath,
    base: AnyPath | None,
    merge: Merge,
    record: TableRecord,
    classes: list[dict[str, Any]],
    check_held: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Write a table of one file; return failed rows by error code.

    Readers see the old one until it is replaced, right before which `check_held` may object.
    """
    product = merge.product
    kept = kept_rows(product, base, merge.kept) if base and len(merge.kept) else iter(())
    groups = merge.groups(0, merge.n_rows, Stream(product, merge.carried(kept)))
    with atomic_output(out, check_held) as temporary:
        return write_file(product, temporary, groups, merge.n_rows, record, classes)


def write_file(
    product: Product,
    path: Path,
    groups: Iterable[pa.Table],
    n_rows: int,
    record: TableRecord,
    classes: list[dict[str, Any]],
) -> dict[str, int]:
    """Write rows to a Parquet file that says what made it; return failed rows by error code."""
    errors: dict[str, int] = {}
    with product.writer(path) as writer:
        for rows in groups:
            for code, count in product.count_errors(rows).items():
                errors[code] = errors.get(code, 0) + count
            writer.write_table(rows, row_group_size=product.row_group_rows)
        said: dict[str, Any] = {"label_images": record.counting(n_rows, errors).to_json()}
        said["label_images_classes"] = classes
        writer.add_key_value_metadata({name: json.dumps(value) for name, value in said.items()})
    return errors


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet file."""

    file: AnyPath
    number: int

    def read(self) -> pa.Table:
        with pq.ParquetFile(as_arrow(self.file), page_checksum_verification=True) as file:
            return file.read_row_group(self.number)


class Parts:
    """The rows of a product's parts by index; each part but the last has `each` rows.

    What one `take` needed is kept for the next: neighbours in the table are mostly neighbours in
    the parts.
    """

    def __init__(
        self, product: Product, parts: Sequence[AnyPath | RowGroup | pa.Table], each: int
    ) -> None:
        self.product, self.parts = product, parts
        self.starts = np.arange(len(parts)) * each  # the index of each part's first row
        self._read: dict[int, pa.Table] = {}

    @classmethod
    def of_sizes(
        cls, product: Product, parts: Sequence[AnyPath | RowGroup], n_rows: Sequence[int]
    ) -> "Parts":
        """Parts that have so many rows, each another number of them."""
        made = cls(product, parts, 0)
        made.starts = np.cumsum([0, *n_rows])[:-1]
        return made

    def take(self, indices: np.ndarray) -> pa.Table:
        if not len(indices):
            return self.product.schema.empty_table()
        part_of = np.searchsorted(self.starts, indices, side="right") - 1
        numbers = np.unique(part_of)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            self._read = dict(
                zip(numbers.tolist(), threads.map(self._part, numbers.tolist()), strict=True)
            )
        offsets = np.cumsum([0, *(len(part) for part in self._read.values())])[:-1]
        rows = offsets[np.searchsorted(numbers, part_of)] + indices - self.starts[part_of]
        return pa.concat_tables(self._read.values()).take(pa.array(rows))

    def _part(self, number: int) -> pa.Table:
        if number in self._read:
            return self._read[number]
        part = self.parts[number]
        if isinstance(part, RowGroup):
            part = part.read()
        elif not isinstance(part, pa.Table):
            part = read_parquet(part)
        return self.product.conform(part)  # a version before may have begun the job


class Stream:
    """A product's rows from a sequence of tables, as many at a time as asked for."""

    def __init__(self, product: Product, tables: Iterator[pa.Table]) -> None:
        self.tables = tables
        self.buffer = self.nothing = product.schema.empty_table()

    def read(self, n: int) -> pa.Table:
        chunks = []
        while n:
            if not len(self.buffer):
                self.buffer = next(self.tables)
            chunk, self.buffer = self.buffer.slice(0, n), self.buffer.slice(n)
            chunks.append(chunk)
            n -= len(chunk)
        return pa.concat_tables(chunks) if chunks else self.nothing


def kept_rows(
    product: Product,
    base: AnyPath,
    numbers: np.ndarray,
    table: AnyPath | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Yield rows of a product's file by their numbers, which ascend, but for a few places where
    they begin anew; or some `columns` that it has. Row groups without any of them are skipped.
    `table` is the folder the file is in, of a table of many.
    """
    for ascending in runs(numbers):
        yield from _kept_rows(product, base, ascending, table, columns)


def runs(numbers: np.ndarray) -> list[np.ndarray]:
    """Cut numbers where they begin anew: each run ascends."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) < 0) + 1)


def _kept_rows(
    product: Product,
    base: AnyPath,
    numbers: np.ndarray,
    table: AnyPath | None,
    columns: Sequence[str] | None,
) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(as_arrow(base), page_checksum_verification=True) as file:
            offset = 0
            for group in range(file.num_row_groups):
                n = file.metadata.row_group(group).num_rows
                first, last = np.searchsorted(numbers, [offset, offset + n])
                if last > first:
                    rows = file.read_row_group(group, columns=columns)
                    rows = product.conform(rows) if columns is None else rows
                    yield rows.take(pa.array(numbers[first:last] - offset))
                offset += n
    except (pa.ArrowException, OSError) as error:
        raise damaged(base, error, table) from error
