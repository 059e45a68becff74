"""The table: its schema, the parts of a job, and their merge. The rows are rows.py's work.

Every part and every table has exactly SCHEMA; nothing is inferred from data. The file's metadata
holds a JSON record under `label_images` (what made the table) and the class names under
`label_images_classes`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.files import atomic_output
from jobs.plan import KNOWN
from jobs.store import AnyPath, as_arrow

from .errors import TableError

TABLE_VERSION = 1
ROW_GROUP_ROWS = 122_880  # what DuckDB parallelises over

BEST = pa.struct(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("path_bytes", pa.binary()),
        pa.field("root", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("exif_orientation", pa.int32()),
        pa.field("decode_notes", pa.list_(pa.string())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
        pa.field("label", pa.string()),
        pa.field("class_id", pa.int32()),
        pa.field("probability", pa.float32()),
        pa.field("top_k", pa.list_(BEST)),
        pa.field("model", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

_WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def write_part(rows: pa.Table, path: Path) -> dict[str, int]:
    """Write a shard's rows in index order; return the failed ones by error code."""
    rows = rows.sort_by("index").drop_columns("index")
    pq.write_table(rows, path, **_WRITE_OPTIONS)
    return count_values(rows["error_code"])


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count each value but null, in alphabetical order."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(column.drop_null()).to_pylist()}
    return dict(sorted(counts.items()))


def read_record(path: AnyPath) -> dict[str, Any] | None:
    """Read what a table says of itself; None when there is no file.

    Raises TableError for a file that this tool did not write, or a version of it that differs.
    """
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(as_arrow(path)) as file:
            metadata, schema = file.metadata.metadata or {}, file.schema_arrow
            record = json.loads(metadata[b"label_images"])
            version = record["version"]
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path} was not written by label-images, or is damaged ({type(error).__name__}); choose another --out, "
            "or replace it with --overwrite"
        ) from error
    if version != TABLE_VERSION or not schema.equals(SCHEMA):
        raise TableError(
            f"{path} has other columns than this version of label-images writes (table version {version}, this is "
            f"{TABLE_VERSION}); choose another --out, or replace it with --overwrite"
        )
    return record


def read_classes(path: AnyPath) -> list[dict[str, Any]]:
    """Read the classes that a table's labels are from. Raises TableError."""
    try:
        classes = json.loads(pq.read_metadata(as_arrow(path)).metadata[b"label_images_classes"])
        assert all(isinstance(entry["label"], str) for entry in classes)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise TableError(f"{path} does not say what its classes are ({error}); label again with --overwrite") from error
    return list(classes)


def read_known(path: AnyPath) -> pa.Table:
    """Read the columns of a table that a plan is made from. Raises TableError where it is damaged."""
    try:
        return pq.read_table(
            as_arrow(path),
            columns=KNOWN.names,
            read_dictionary=["root", "status", "error_code", "fingerprint"],
            partitioning=None,
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: AnyPath, error: Exception) -> TableError:
    """What to say of a table whose pages cannot be read, or are not as they were written."""
    return TableError(
        f"{path} is damaged ({error}); keep what can still be proven with `label-images verify {path} --repair`, "
        "or label all again with --restart"
    )


def write_merged(
    out: AnyPath,
    base: AnyPath | None,
    kept: pa.Array,
    parts: "Parts",
    positions: np.ndarray,
    record: dict[str, Any],
    classes: list[dict[str, Any]],
) -> dict[str, int]:
    """Merge rows of `base` and the parts into the table at `out`; return failed rows by error code.

    `kept` are the row numbers of `base` to carry over, ascending, and so read once, a row group at a
    time; `positions` the places in the new table of the parts' rows, by index. Readers see the old
    table until the rename, then the new one.
    """
    n_rows = len(kept) + len(positions)
    old_rows = _Stream(_kept_rows(base, kept))
    by_position = np.argsort(positions, kind="stable")
    positions = positions[by_position]
    errors: dict[str, int] = {}
    with atomic_output(out) as temporary, pq.ParquetWriter(temporary, SCHEMA, **_WRITE_OPTIONS) as writer:
        for start in range(0, n_rows, ROW_GROUP_ROWS):
            end = min(start + ROW_GROUP_ROWS, n_rows)
            first, last = np.searchsorted(positions, [start, end])
            is_new = np.zeros(end - start, dtype=bool)
            is_new[positions[first:last] - start] = True
            n_new = int(last - first)
            rows = pa.concat_tables([old_rows.read(end - start - n_new), parts.take(by_position[first:last])])
            order = np.empty(end - start, dtype=np.int64)
            order[~is_new] = np.arange(end - start - n_new)
            order[is_new] = np.arange(end - start - n_new, end - start)
            rows = rows.take(pa.array(order))
            for code, count in count_values(rows["error_code"]).items():
                errors[code] = errors.get(code, 0) + count
            writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        failed = sum(errors.values())
        counts = {"rows": n_rows, "ok": n_rows - failed, "errors": errors}
        record = {"version": TABLE_VERSION, **record, "counts": counts}
        writer.add_key_value_metadata({"label_images": json.dumps(record), "label_images_classes": json.dumps(classes)})
    return errors


class Parts:
    """The rows of a job's parts by index; each part but the last has `each` rows.

    What one `take` needed is kept for the next: neighbours in the table are mostly neighbours in the parts.
    """

    def __init__(self, parts: Sequence[AnyPath | pa.Table], each: int) -> None:
        self.parts, self.each = parts, each
        self._read: dict[int, pa.Table] = {}

    def take(self, indices: np.ndarray) -> pa.Table:
        if not len(indices):
            return SCHEMA.empty_table()
        numbers = np.unique(indices // self.each)
        self._read = {
            number: self._read[number] if number in self._read else self._part(number) for number in numbers.tolist()
        }
        offsets = np.cumsum([0, *(len(part) for part in self._read.values())])[:-1]
        rows = offsets[np.searchsorted(numbers, indices // self.each)] + indices % self.each
        return pa.concat_tables(self._read.values()).take(pa.array(rows))

    def _part(self, number: int) -> pa.Table:
        part = self.parts[number]
        return part if isinstance(part, pa.Table) else pq.read_table(as_arrow(part), schema=SCHEMA, partitioning=None)


class _Stream:
    """Rows from a sequence of tables, as many at a time as asked for."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self.tables = tables
        self.buffer = SCHEMA.empty_table()

    def read(self, n: int) -> pa.Table:
        chunks = []
        while n:
            if not len(self.buffer):
                self.buffer = next(self.tables)
            chunk, self.buffer = self.buffer.slice(0, n), self.buffer.slice(n)
            chunks.append(chunk)
            n -= len(chunk)
        return pa.concat_tables(chunks) if chunks else SCHEMA.empty_table()


def _kept_rows(base: AnyPath | None, kept: pa.Array) -> Iterator[pa.Table]:
    if base is None or not len(kept):
        return
    wanted = kept.to_numpy()
    with pq.ParquetFile(as_arrow(base), page_checksum_verification=True) as file:
        offset = 0
        for group in range(file.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            first, last = np.searchsorted(wanted, [offset, offset + n])
            if last > first:
                try:
                    rows = file.read_row_group(group)
                except (pa.ArrowException, OSError) as error:
                    raise damaged(base, error) from error
                yield rows.take(pa.array(wanted[first:last] - offset))
            offset += n
