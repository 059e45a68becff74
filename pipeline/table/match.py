"""Which row of another product belongs to which row of the table of labels."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.keys import in_pieces
from jobs.manifest import Fingerprint
from jobs.storage.arrow import read_parquet
from jobs.storage.object_store import AnyPath, as_arrow

from .product import Product
from .record import TableRecord, damaged
from .table import files_of, read_index, read_record

_STATE = ("root", "path", "size_bytes", "mtime")  # of an image's file, in each product


def is_in_step(product: Product, path: AnyPath, table: TableRecord) -> bool:
    """Whether a product was made by the same merge as the table of labels: then it has what that
    could give it, and nothing else.
    """
    record = read_record(path, product)
    return (
        record is not None
        and record.plan_id == table.plan_id
        and record.receipts_sha256 == table.receipts_sha256 != ""
    )


def is_complete(product: Product, path: AnyPath, table: TableRecord) -> bool:
    """Whether, beside that, it has a row for each labelled image."""
    record = read_record(path, product)
    return (
        record is not None
        and is_in_step(product, path, table)
        and record.counts["rows"] == table.counts["ok"]
    )


def rows_of(
    product: Product,
    path: AnyPath,
    known: pa.Table,
    table: AnyPath,
    table_record: TableRecord,
    fingerprint: Fingerprint,
) -> pa.Array:
    """For each row known of the table (jobs.plan.KNOWN, in order), its row (int64) in the product at
    `path`, null where it has none of the same file in the same state, or of another fingerprint.

    Raises TableError for what is not that product, or cannot be read.
    """
    record = read_record(path, product)
    if record is None or record.fingerprint_fields != product.decided_by(fingerprint):
        return pa.nulls(len(known), pa.int64())
    if is_complete(product, path, table_record):
        # Nothing is to be looked up. Whether the files are there is better known now than when all
        # is labelled.
        _check_files(path)
        is_labelled = pc.equal(known["status"], "ok").to_numpy()
        return pa.array(np.cumsum(is_labelled) - 1, mask=~is_labelled)
    ours = known.append_column("content_hash", _hashes(table, table_record, len(known)))
    return _looked_up(ours, _read(path))


def _looked_up(ours: pa.Table, theirs: pa.Table) -> pa.Array:
    """For each of our labelled rows the number of theirs that is of the same file, in the same state
    and with the same bytes, as far as both say; both are in the order of their keys.
    """
    found = [pa.array([], pa.int64())]
    for _, first, rows, others in in_pieces(ours, theirs):
        row = pc.index_in(_states(rows), value_set=_one_array(_states(others)))
        is_same = pc.fill_null(
            pc.equal(rows["content_hash"], others["content_hash"].take(_one_array(row))), True
        )
        is_found = pc.and_(pc.equal(rows["status"], "ok"), is_same)
        number = pc.add(row.cast(pa.int64()), first)
        found.append(_one_array(pc.if_else(is_found, number, None)).cast(pa.int64()))
    return pa.concat_arrays(found)


def _one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _hashes(table: AnyPath, record: TableRecord, n_rows: int) -> pa.ChunkedArray:
    """The content_hash of each row of the table of labels; null of tables that have none."""
    if "content_hash" not in record.schema.names:
        return pa.chunked_array([pa.nulls(n_rows, pa.string())])
    return _read(table, ["content_hash"])["content_hash"]


def _check_files(path: AnyPath) -> None:
    index = read_index(path)
    for file in index.files if index else ():
        try:
            n_rows = pq.read_metadata(as_arrow(path / file.name)).num_rows
        except (pa.ArrowException, OSError) as error:
            raise damaged(path / file.name, error, path) from error
        if n_rows != file.rows:
            found = ValueError(f"{n_rows:,} rows instead of {file.rows:,}")
            raise damaged(path / file.name, found, path)


def _read(path: AnyPath, columns: Sequence[str] = (*_STATE, "content_hash")) -> pa.Table:
    tables = []
    for file in files_of(path):
        try:
            tables.append(read_parquet(file, columns=list(columns)))
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error, path) from error
    return pa.concat_tables(tables)


def _states(rows: pa.Table) -> pa.ChunkedArray:
    """What is the same for an image and its rows as long as its file does not change, as one value."""
    text = pa.large_string()
    numbers = [
        pc.fill_null(rows[name].cast(pa.int64()).cast(text), "") for name in ("size_bytes", "mtime")
    ]
    names = [rows[name].cast(text) for name in ("root", "path")]
    return pc.binary_join_element_wise(*names, *numbers, pa.scalar("\0", text))
