"""A table of many files: a folder of Parquet files of about a million rows, each a range of keys.

A run rewrites the files in whose range something changed, and no other. Which range a file has is
what its rows say: new rows go to the file whose rows come before them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.storage.atomic import atomic_output, make_folder
from jobs.table_index import Index, IndexedFile

from .merge import Merge, Stream, kept_rows, write_file
from .record import TableRecord
from .schema import ROW_GROUP_ROWS

FILE_ROWS = 8 * ROW_GROUP_ROWS
_SPLIT_FROM = 1.5  # times FILE_ROWS


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

    def pieces(self) -> Iterator[tuple[int, int]]:
        n = self.end - self.start
        n_files = 1 if n <= _SPLIT_FROM * FILE_ROWS else -(-n // FILE_ROWS)
        yield from pairwise(np.linspace(self.start, self.end, n_files + 1).astype(int).tolist())


def ranges(merge: Merge, base: Index | None) -> Iterator[Range]:
    """Cut the new table at the borders of the old one's files."""
    if base is None:
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
    files: list[IndexedFile] = []
    new_name = (base or Index({}, [], [])).new_names()
    make_folder(job.staged)
    for part in ranges(merge, base):
        if part.file and part.is_unchanged:
            files.append(part.file)
            continue
        old_rows = Stream(
            kept_rows(job.out / part.file.name, part.kept, job.out) if part.file else iter(())
        )
        names = [part.file.name] if part.file else []
        for start, end in part.pieces():
            if start == end and (files or merge.n_rows):
                continue  # all its rows are gone
            name = names.pop() if names else new_name()
            with atomic_output(job.staged / name) as temporary:
                errors = write_file(
                    temporary, merge.groups(start, end, old_rows), end - start, record, classes
                )
                files.append(IndexedFile(name, end - start, errors, sha256_file(temporary)))
    errors = total_errors(files)
    index = Index(record.counting(merge.n_rows, errors).to_json(), classes, files)
    job.switch(index)
    return errors


def total_errors(files: list[IndexedFile]) -> dict[str, int]:
    codes = sorted({code for file in files for code in file.errors})
    return {code: sum(file.errors.get(code, 0) for file in files) for code in codes}
