"""Proof of a table: `label-images verify` reads all of it and checks what docs/table.md promises.

Checks one row group at a time; between them only the last key is kept, since rows are in key order.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.job import Job
from jobs.receipts import sha256_file
from jobs.storage.object_store import AnyPath, as_arrow

from .merge import RowGroup
from .product import all_true
from .record import TableRecord
from .table import files_of, read_classes, read_index, read_record


def verify_table(path: AnyPath) -> tuple[TableRecord | None, list[str]]:
    """Return a table's record and what is wrong with it, nothing where all holds.

    Raises TableError where the file is no table of ours at all.
    """
    record = read_record(path)
    if record is None:
        return None, [f"there is no table at {path}"]
    return record, list(_problems(path, record))


def _problems(path: AnyPath, record: TableRecord) -> Iterator[str]:
    last_run = Job(path).read_run() or {}
    index = read_index(path)
    if index is not None:
        for file in index.files:
            if (path / file.name).is_file() and sha256_file(path / file.name) != file.sha256:
                yield f"{file.name} is not, to the byte, the one that was written"
    elif last_run.get("plan_id") == record.plan_id and last_run.get("table_sha256") not in (
        None,
        sha256_file(path),
    ):
        yield "the file is not, to the byte, the one that was written"
    rows, errors, last_key, damaged = 0, Counter[str](), "", False
    for group in check_groups(path, record):
        name, table = group.name, group.rows
        yield from (f"{name}: {problem}" for problem in group.problems)
        if table is None:
            damaged = True
            continue
        keys = _keys(table)
        if len(keys) and not keys[0].as_py() > last_key:
            yield f"{name}: its rows do not come after those of the group before"
        last_key = keys[-1].as_py() if len(keys) else last_key
        rows += len(table)
        errors.update(record.product.count_errors(table))
    counts = record.counts
    if not damaged and (counts["rows"], counts["errors"]) != (rows, dict(sorted(errors.items()))):
        yield (
            f"{rows} rows with errors {dict(errors)}, but the record says {counts['rows']} with "
            f"{counts['errors']}"
        )


@dataclass(frozen=True)
class CheckedGroup:
    """A row group, or a whole file that cannot be opened (`at` is None): its rows, None where they
    cannot be read, and what is wrong with it by itself.
    """

    name: str
    at: RowGroup | None
    rows: pa.Table | None
    problems: list[str]


def check_groups(path: AnyPath, record: TableRecord) -> Iterator[CheckedGroup]:
    """Yield each row group of a table, one in memory at a time."""
    classes = pa.array([entry["label"] for entry in read_classes(path)], pa.string())
    for path_of_file in (files := files_of(path)):
        prefix = "" if len(files) == 1 else f"{path_of_file.name}, "
        try:
            with pq.ParquetFile(as_arrow(path_of_file), page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    rows, problems = _check_group(file, group, record, classes)
                    at = RowGroup(path_of_file, group)
                    yield CheckedGroup(f"{prefix}row group {group}", at, rows, problems)
        except (OSError, pa.ArrowException) as error:
            yield CheckedGroup(path_of_file.name, None, None, [f"it cannot be read: {error}"])


def _check_group(
    file: pq.ParquetFile, group: int, record: TableRecord, classes: pa.Array
) -> tuple[pa.Table | None, list[str]]:
    try:
        table = file.read_row_group(group)
        table.validate(full=True)
        if not table.schema.equals(record.schema):
            return None, ["its columns are not those of its table"]
        table = record.product.conform(table)
        problems = list(record.product.problems(table, record, classes))
    except (OSError, pa.ArrowException, ValueError) as error:
        return None, [f"it is damaged: {error}"]
    keys = _keys(table)
    if not all_true(pc.greater(keys[1:], keys[:-1])):
        problems.append("rows are not in the order of root and path, or a key stands twice")
    return table, problems


def _keys(table: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(table["root"], table["path"], "\0").combine_chunks()
