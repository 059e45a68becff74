"""The table's columns, and how they are written to Parquet.

Every part and every table has exactly SCHEMA; nothing is inferred from data.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
