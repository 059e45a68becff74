"""Product: one of the tables that a run makes of the same images, row by row in the same order.

The table of labels is one (labels.py). Merging, switching, proving, repairing and partitioning are
the same for each product; what is particular to one stands in its description.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.manifest import Fingerprint

if TYPE_CHECKING:
    from .record import TableRecord

# Raised where a column is added: tables of before are read, and their rows carried over with nulls.
TABLE_VERSION = 3  # 1 said precision and device of the last process alone; 2 had no content_hash


@dataclass(frozen=True)
class Product:
    """`added` are the columns that tables before a version had not, by that version.

    `decided_by` is the part of a fingerprint that decides its rows. `problems` yields what is wrong
    with some rows by themselves, given the table's record and the names of its classes (pa.Array of
    strings).
    """

    name: str
    schema: pa.Schema
    row_group_rows: int
    decided_by: Callable[[Fingerprint], dict[str, Any]]
    problems: Callable[[pa.Table, "TableRecord", pa.Array], Iterator[str]]
    added: Mapping[str, int] = field(default_factory=dict)
    write_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_rows(self) -> int:
        """About how many rows each file of a table of many files has."""
        return 8 * self.row_group_rows

    def schema_of(self, version: int) -> pa.Schema:
        """The columns that a table of some version has."""
        return pa.schema(
            [column for column in self.schema if self.added.get(column.name, 1) <= version]
        )

    def conform(self, rows: pa.Table) -> pa.Table:
        """Rows of any version with today's columns; those added since are null."""
        if rows.schema.equals(self.schema):
            return rows
        columns = [
            rows[column.name]
            if column.name in rows.schema.names or column.name not in self.added
            else pa.nulls(len(rows), column.type)
            for column in self.schema
        ]
        return pa.table(columns, schema=self.schema)

    def writer(self, path: Path) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            path, self.schema, compression="zstd", write_page_checksum=True, **self.write_options
        )

    def write_part(self, rows: pa.Table, path: Path) -> dict[str, int]:
        """Write a shard's rows, which have an `index`, in its order; return the failed by code."""
        rows = rows.sort_by("index").drop_columns("index")
        with self.writer(path) as writer:
            writer.write_table(rows, row_group_size=self.row_group_rows)
        return self.count_errors(rows)

    def count_errors(self, rows: pa.Table) -> dict[str, int]:
        """Failed rows by error code; none of a product that has no codes."""
        return count_values(rows["error_code"]) if "error_code" in rows.schema.names else {}


def all_true(values: pa.ChunkedArray | pa.Array) -> bool:
    """Whether all values are true, of none, too: of none pyarrow says null by itself."""
    return bool(pc.all(values, min_count=0).as_py())


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count each value but null, in alphabetical order."""
    counts = {
        entry["values"]: entry["counts"]
        for entry in pc.value_counts(column.drop_null()).to_pylist()
    }
    return dict(sorted(counts.items()))
