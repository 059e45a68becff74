"""A table of many files: a folder of Parquet files, of labels about a million rows each, and each
a range of keys.

A run rewrites the files in whose range something changed, and no other. Which range a file has is
what its rows say: new rows go to the file whose rows come before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.storage.atomic import atomic_output, make_folder
from jobs.storage.object_store import AnyPath
from jobs.table_index import Index, IndexedFile

from .merge import Merge, Stream, kept_rows, runs, write_file
from .product import TABLE_VERSION, Product
from .record import TableRecord
from .table import read_index

_SPLIT_FROM = 1.5  # times the rows that a file should have


@dataclass(frozen=True)
class Range:
    """The rows of the new table from `start` to `end`; `file` is the old one they belong to, or
    None.

    `kept` are the rows of that file that are carried over.
    """

    start: int
    end: int
    file: IndexedFile | None
    kept: np.ndarray

    @property
    def is_unchanged(self) -> bool:
        return self.file is not None and len(self.kept) == self.file.rows == self.end - self.start

    def pieces(self, file_rows: int) -> Iterator[tuple[int, int]]:
        """Where to cut it into files of about so many rows."""
        n = self.end - self.start
        n_files = 1 if n <= _SPLIT_FROM * file_rows else -(-n // file_rows)
        yield from pairwise(np.linspace(self.start, self.end, n_files + 1).astype(int).tolist())


def ranges(merge: Merge, base: Index | None) -> Iterator[Range]:
    """Cut the new table at the borders of the old one's files, if its rows are still in that order."""
    if base is None or merge.reorders:
        yield Range(0, merge.n_rows, None, merge.kept)
        return
    first_rows = np.cumsum([0, *(file.rows for file in base.files)])
    borders = np.searchsorted(merge.kept, first_rows)  # in the rows carried over
    starts = [0, *(merge.position_of_kept(border) for border in borders[1:-1]), merge.n_rows]
    for number, file in enumerate(base.files):
        kept = merge.kept[borders[number] : borders[number + 1]] - first_rows[number]
        yield Range(starts[number], starts[number + 1], file, kept)


def write_dataset(
    job: Job,
    base: Index | None,
    merge: Merge,
    record: TableRecord,
    classes: list[dict[str, Any]],
) -> dict[str, int]:
    """Bring the files of the table at `job.out` up to date; return its failed rows by error code."""
    product, files = merge.product, list[IndexedFile]()
    # All files of a table have the same columns: readers take them from the first.
    has_columns = base is not None and base.record.get("version") == TABLE_VERSION
    new_name = (base or Index({}, [], [])).new_names()
    make_folder(job.staged)
    for part in ranges(merge, base):
        if part.file and part.is_unchanged and has_columns and not merge.carry:
            files.append(part.file)
            continue
        kept: Iterator[pa.Table] = iter(())
        if part.file:
            kept = kept_rows(product, job.out / part.file.name, part.kept, job.out)
        elif base is not None:
            kept = rows_by_number(product, job.out, part.kept)
        old_rows = Stream(product, merge.carried(kept))
        names = [part.file.name] if part.file else []
        for start, end in part.pieces(product.file_rows):
            if start == end and (files or merge.n_rows):
                continue  # all its rows are gone
            name = names.pop() if names else new_name()
            with atomic_output(job.staged / name) as temporary:
                groups = merge.groups(start, end, old_rows)
                errors = write_file(product, temporary, groups, end - start, record, classes)
                files.append(IndexedFile(name, end - start, errors, sha256_file(temporary)))
    errors = total_errors(files)
    index = Index(record.counting(merge.n_rows, errors).to_json(), classes, files)
    job.switch(index)
    return errors


def rows_by_number(
    product: Product, table: AnyPath, numbers: np.ndarray, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield rows of a table, of one file or many, by their numbers, which ascend, but for a few
    places where they begin anew; or some columns of them.
    """
    index = read_index(table)
    if index is None:
        yield from kept_rows(product, table, numbers, columns=columns)
        return
    first_rows = np.cumsum([0, *(file.rows for file in index.files)])
    for ascending in runs(numbers):
        borders = np.searchsorted(ascending, first_rows)
        for number, file in enumerate(index.files):
            of_file = ascending[borders[number] : borders[number + 1]] - first_rows[number]
            if len(of_file):
                yield from kept_rows(product, table / file.name, of_file, table, columns)


def total_errors(files: list[IndexedFile]) -> dict[str, int]:
    codes = sorted({code for file in files for code in file.errors})
    return {code: sum(file.errors.get(code, 0) for file in files) for code in codes}
