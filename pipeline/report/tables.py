"""OpenTable: a table as it is at one moment, read in batches and by row number.

Its files are opened once: one that a run replaces meanwhile is read on as it was.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import LabelImagesError, TableError
from pipeline.table.labels import LABELS
from pipeline.table.record import TableRecord, damaged
from pipeline.table.table import files_of, read_classes, read_record

_BATCH_ROWS = 65_536


class OpenTable:
    """A context manager. Raises TableError for what is no table of labels."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.record = _record(path)
        self.classes: list[str] = [each["label"] for each in read_classes(path)]
        self._open = ExitStack()
        try:
            self.files = [
                self._open.enter_context(pq.ParquetFile(as_arrow(file))) for file in files_of(path)
            ]
        except (pa.ArrowException, OSError) as error:
            self._open.close()
            raise damaged(path, error) from error
        if _record(path) != self.record:
            self._open.close()
            raise LabelImagesError(
                f"{path} was replaced while it was opened: a run is at work; do it again"
            )

    def __enter__(self) -> "OpenTable":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, in order: of some columns, or leaves of them. Raises TableError."""
        for file in self.files:
            try:
                yield from file.iter_batches(_BATCH_ROWS, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise damaged(self.path, error) from error

    def rows(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows by their number, ascending. A column that a table of before has not is None."""
        known = [name for name in columns if name in self.record.schema.names]
        missing = dict.fromkeys(set(columns) - set(known))
        found: list[dict[str, Any]] = []
        first = place = 0
        for file, group, n_rows in self._groups():
            end = bisect_left(numbers, first + n_rows)
            if end > place:
                wanted = [number - first for number in numbers[place:end]]
                found += [row | missing for row in self._taken(file, group, wanted, known)]
            first, place = first + n_rows, end
        return found

    def _groups(self) -> Iterator[tuple[pq.ParquetFile, int, int]]:
        for file in self.files:
            for group in range(file.num_row_groups):
                yield file, group, file.metadata.row_group(group).num_rows

    def _taken(
        self, file: pq.ParquetFile, group: int, wanted: list[int], columns: list[str]
    ) -> Iterator[dict[str, Any]]:
        first = place = 0
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                end = bisect_left(wanted, first + len(batch))
                yield from batch.take([row - first for row in wanted[place:end]]).to_pylist()
                first, place = first + len(batch), end
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.path, error) from error


def _record(path: AnyPath) -> TableRecord:
    record = read_record(path, LABELS)
    if record is None:
        raise TableError(f"there is no table at {path}; the command that labels writes it")
    return record
