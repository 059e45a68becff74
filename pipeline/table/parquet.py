"""The table: its schema, the parts of a job, and their merge. The rows are rows.py's work.

Every part and every table has exactly SCHEMA; nothing is inferred from data. The file's metadata
holds a JSON record under `label_images` (what made the table) and the class names under
`label_images_classes`.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.plan import KNOWN
from jobs.records import canonical_sha256
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError

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

# What the readers of a record count on, beside its version.
_RECORD = {
    "plan_id": str, "created_at": str, "run_id": str, "tool_version": str, "roots": list,
    "counts": dict,
    "model": str, "fingerprint": str, "fingerprint_fields": dict, "precision": str, "device": str,
}  # fmt: skip
_COUNTS = {"rows": int, "ok": int, "errors": dict}

WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def write_part(rows: pa.Table, path: Path) -> dict[str, int]:
    """Write a shard's rows in index order; return the failed ones by error code."""
    rows = rows.sort_by("index").drop_columns("index")
    pq.write_table(rows, path, **WRITE_OPTIONS)
    return count_values(rows["error_code"])


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count each value but null, in alphabetical order."""
    counts = {
        entry["values"]: entry["counts"]
        for entry in pc.value_counts(column.drop_null()).to_pylist()
    }
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
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path} was not written by label-images, or is damaged ({type(error).__name__}); "
            f"choose another --out, "
            "or replace it with --overwrite"
        ) from error
    if version != TABLE_VERSION or not schema.equals(SCHEMA):
        raise TableError(
            f"{path} has other columns than this version of label-images writes (table version "
            f"{version}, this is "
            f"{TABLE_VERSION}); choose another --out, or replace it with --overwrite"
        )
    if not _is_whole(record):
        raise TableError(
            f"{path} is damaged: what it says of itself is not as it was written; choose another "
            f"--out, or replace it "
            "with --overwrite"
        )
    return record


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record says all that it should: damage may have left it JSON, with a key that
    nobody knows.
    """
    return (
        all(isinstance(record.get(name), kind) for name, kind in _RECORD.items())
        and all(isinstance(record["counts"].get(name), kind) for name, kind in _COUNTS.items())
        and canonical_sha256(record["fingerprint_fields"]) == record["fingerprint"]
    )


def read_classes(path: AnyPath) -> list[dict[str, Any]]:
    """Read the classes that a table's labels are from. Raises TableError."""
    try:
        classes = json.loads(pq.read_metadata(as_arrow(path)).metadata[b"label_images_classes"])
        assert all(isinstance(entry["label"], str) for entry in classes)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise TableError(
            f"{path} does not say what its classes are ({error}); label again with --overwrite"
        ) from error
    return list(classes)


def read_known(path: AnyPath, in_archives: bool = False) -> pa.Table:
    """Read the columns of a table that a plan is made from, or only the rows of images
    `in_archives`.

    Raises TableError where it is damaged.
    """
    encoded = ["root", "status", "error_code", "fingerprint"]
    try:
        with pq.ParquetFile(
            as_arrow(path), read_dictionary=encoded, page_checksum_verification=True
        ) as file:
            if not in_archives:
                return file.read(columns=KNOWN.names)
            batches = file.iter_batches(columns=KNOWN.names)
            rows = [
                pa.table(batch).filter(pc.match_substring(batch["path"], ".tar", ignore_case=True))
                for batch in batches
            ]
            return pa.concat_tables(
                [KNOWN.empty_table(), *(each.select(KNOWN.names).cast(KNOWN) for each in rows)]
            )
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: AnyPath, error: Exception) -> TableError:
    """What to say of a table whose pages cannot be read, or are not as they were written."""
    return TableError(
        f"{path} is damaged ({error}); keep what can still be proven with `label-images verify "
        f"{path} --repair`, "
        "or label all again with --restart"
    )
