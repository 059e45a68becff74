"""Tables of images: Parquet files with a column of image bytes, read where they lie.

An image in one is known by its `offset`, the row.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.object_store import StorePath
from pipeline.errors import UsageError
from pipeline.find.tar_archives import Damaged

Place = bytes | StorePath


_ROWS_AT_ONCE = 16  # of image bytes in memory


def keys(
    file: BinaryIO, image_column: str, key_column: str | None, name: str
) -> Iterator[tuple[str, int]]:
    """Yield the key and the row of each image in a table; without a key column the row is the key.

    Raises UsageError where a column is missing or keys are not unique, Damaged where it is no
    Parquet.
    """
    try:
        with pq.ParquetFile(file) as table:
            _image_field(table, image_column, name)
            if key_column is None:
                yield from ((f"{row:09}", row) for row in range(table.metadata.num_rows))
                return
            if key_column not in table.schema_arrow.names:
                raise UsageError(f"{name} has no column {key_column!r}; {_its_columns(table)}")
            row, seen = 0, set[str]()
            for batch in table.iter_batches(columns=[key_column]):
                for key in batch.column(0).cast(pa.string()).to_pylist():
                    if key is None or key in seen:
                        raise UsageError(
                            f"{name}: row {row} of {key_column!r} is "
                            f"{'empty' if key is None else f'{key!r} again'}; choose another "
                            "--key-column, or leave it out: rows are then known by their number"
                        )
                    seen.add(key)
                    yield key, row
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"no Parquet table, or a damaged one: {error}") from error


def has_column(file: BinaryIO, column: str) -> bool:
    """Whether a file is a Parquet table with that column. Raises OSError where the disk fails."""
    try:
        return column in pq.read_schema(file).names
    except pa.ArrowException:
        return False
    except OSError as error:
        if error.errno is not None:  # of the operating system; Arrow's about damage have none
            raise
        return False


def opened(place: Place) -> Any:
    """Open a container for reading, with seek."""
    return place.open() if isinstance(place, StorePath) else open(place, "rb")


def read_row(place: Place, column: str, row: int) -> bytes | None:
    """Read the image bytes of a table's row; None where there are none. Raises OSError or
    ArrowException.

    Fast where rows are asked for from front to back: it reads on from the last one.
    """
    starts = _group_starts(place)
    group = bisect_right(starts, row) - 1
    return _group(place, column, group).read(row - starts[group])


@lru_cache(maxsize=64)
def _group_starts(place: Place) -> list[int]:
    """The first row of each row group, and the end."""
    with opened(place) as file:
        metadata = pq.read_metadata(file)
    return [
        0,
        *accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)),
    ]


@lru_cache(maxsize=2)
def _group(place: Place, column: str, group: int) -> "_Group":
    return _Group(opened(place), column, group, str(place))


class _Group:
    """One column of a row group, read a few rows at a time."""

    def __init__(self, file: Any, column: str, group: int, name: str) -> None:
        self.file = file
        self.table = pq.ParquetFile(file)
        self.leaf = _image_field(self.table, column, name)
        self.group = group
        self._restart()

    def __del__(self) -> None:  # when the cache lets it go
        self.file.close()

    def _restart(self) -> None:
        self.batches: Iterator[pa.RecordBatch] = self.table.iter_batches(
            _ROWS_AT_ONCE, row_groups=[self.group], columns=[self.leaf], use_threads=False
        )
        self.start, self.values = 0, pa.array([])

    def read(self, row: int) -> bytes | None:
        if row < self.start:
            self._restart()
        while row >= self.start + len(self.values):
            self.start += len(self.values)
            self.values = next(self.batches).column(0)
        value: Any = self.values[row - self.start].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def _image_field(table: pq.ParquetFile, column: str, name: str) -> str:
    """The column to read: of datasets' image structs (bytes, path) the bytes. Raises UsageError."""
    if column not in table.schema_arrow.names:
        raise UsageError(f"{name} has no column {column!r}; {_its_columns(table)}")
    kind = table.schema_arrow.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{column}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    raise UsageError(
        f"{name}: column {column!r} holds {kind}, not the bytes of images; {_its_columns(table)}"
    )


def _its_columns(table: pq.ParquetFile) -> str:
    return f"its columns are {', '.join(table.schema_arrow.names)}"
