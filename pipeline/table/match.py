"""Which row of another product belongs to which row of the table of labels."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.manifest import Fingerprint
from jobs.storage.object_store import AnyPath, as_arrow

from .product import Product
from .record import TableRecord, damaged
from .table import files_of, read_index, read_record

_STATE = ("root", "path", "size_bytes", "mtime")  # of an image's file, in each product


def rows_of(
    product: Product, path: AnyPath, known: pa.Table, table: TableRecord, fingerprint: Fingerprint
) -> pa.Array:
    """For each row known of the table (jobs.plan.KNOWN, in order), its row (int64) in the product at
    `path`, null where it has none of the same file in the same state, or of another fingerprint.

    Raises TableError for what is not that product, or cannot be read.
    """
    record = read_record(path, product)
    if record is None or record.fingerprint_fields != product.decided_by(fingerprint):
        return pa.nulls(len(known), pa.int64())
    is_labelled = pc.equal(known["status"], "ok").to_numpy()
    n_labelled = int(is_labelled.sum())
    if (record.plan_id, record.counts["rows"]) == (table.plan_id, n_labelled):
        # Written by one run, and complete: nothing to be looked up. Whether the files are there is
        # better known now than when all is labelled.
        _check_files(path)
        return pa.array(np.cumsum(is_labelled) - 1, mask=~is_labelled)
    rows = pc.index_in(_states(known), value_set=_states(_read(path)).combine_chunks())
    return pc.if_else(pc.equal(known["status"], "ok"), rows, None).combine_chunks().cast(pa.int64())


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


def _read(path: AnyPath) -> pa.Table:
    tables = []
    for file in files_of(path):
        try:
            tables.append(pq.read_table(as_arrow(file), columns=list(_STATE), partitioning=None))
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
