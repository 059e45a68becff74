"""Two tables of the same photos, walked side by side in key order.

    ROWS      what is known of each row: key, state of the file, outcome, its number
    Piece     rows of both with the same range of keys

Both tables are in the order of root and path (docs/table.md), which is checked on the way. A
row group of each is in memory at a time, so that memory does not grow with the tables.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.keys import is_in_order
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError
from pipeline.table.labels import LABELS
from pipeline.table.record import damaged
from pipeline.table.table import files_of

_READ = pa.schema(
    [
        LABELS.schema.field(name)
        for name in (
            "root", "path", "size_bytes", "mtime", "content_hash", "status", "error_code", "label",
            "probability",
        )
    ]
)  # fmt: skip
ROWS = _READ.append(pa.field("row", pa.int64()))  # its number in the table
_ROWS_AT_ONCE = 65_536

Key = tuple[str, str]


@dataclass(frozen=True)
class Piece:
    """Rows (ROWS) of the old and of the new table with the same keys, row by row; and how many
    there were beside them in one alone, in the same range of keys.
    """

    old: pa.Table
    new: pa.Table
    only_old: int
    only_new: int

    @property
    def is_same_file(self) -> NDArray[np.bool_]:
        """Of each row, whether both are of the same bytes: by `content_hash`, and where one has
        none by size and time. What neither tells is not the same.
        """
        by_hash = pc.equal(self.old["content_hash"], self.new["content_hash"])
        by_state = pc.and_(
            *(pc.equal(self.old[name], self.new[name]) for name in ("size_bytes", "mtime"))
        )
        same = pc.fill_null(pc.coalesce(by_hash, by_state), False)
        return (
            same.to_numpy(zero_copy_only=False) if isinstance(same, pa.Array) else same.to_numpy()
        )


def only_root(path: AnyPath) -> str | None:
    """The root of all rows of a table; None where it has several, or no rows."""
    roots: list[str] = []
    for file in files_of(path):
        try:
            with pq.ParquetFile(as_arrow(file)) as opened:
                groups = {0, opened.num_row_groups - 1} if opened.metadata.num_rows else ()
                for group in groups:
                    column = opened.read_row_group(group, columns=["root"])["root"]
                    roots += [column[0].as_py(), column[-1].as_py()]
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error, path) from error
    return roots[0] if roots and min(roots) == max(roots) else None  # in key order: all between too


def read_rows(path: AnyPath) -> Iterator[pa.Table]:
    """Yield a table's rows (ROWS), some at a time; columns that an older table has not are null.

    Raises TableError where they cannot be read, or are not in key order.
    """
    last: Key = ("", "")
    n_rows = 0
    for file in files_of(path):
        try:
            with pq.ParquetFile(as_arrow(file), page_checksum_verification=True) as opened:
                names = [name for name in _READ.names if name in opened.schema_arrow.names]
                for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=names):
                    rows = _conformed(pa.table(batch), n_rows)
                    n_rows += len(rows)
                    if not len(rows):
                        continue
                    if not (is_in_order(rows) and _key(rows, 0) > last):
                        raise TableError(
                            f"the rows of {path} are not in the order label-images wrote them in; "
                            f"see `label-images verify {path}`"
                        )
                    last = _key(rows, len(rows) - 1)
                    yield rows
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error, path) from error


def _conformed(rows: pa.Table, first: int) -> pa.Table:
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in _READ
    ]
    return pa.table([*columns, pa.array(np.arange(first, first + len(rows)))], schema=ROWS)


def in_step(old: AnyPath, new: AnyPath, by_path: bool = False) -> Iterator[Piece]:
    """Walk two tables side by side. `by_path`: each has one root, which may be another in the
    other; then the path below it is the key.
    """
    streams = (read_rows(old), read_rows(new))
    nothing = ROWS.empty_table()
    held = [nothing, nothing]
    while True:
        for side, stream in enumerate(streams):
            if not len(held[side]):
                held[side] = next(stream, nothing)
        if not any(map(len, held)):
            return
        ends = [_key(rows, len(rows) - 1, by_path) for rows in held if len(rows)]
        # Where one table has ended, the other's rows are its own.
        end = min(ends)
        cuts = [_first_after(rows, end, by_path) for rows in held]
        first, second = (rows.slice(0, cut) for rows, cut in zip(held, cuts, strict=True))
        yield _piece(first, second, by_path)
        held = [rows.slice(cut) for rows, cut in zip(held, cuts, strict=True)]


def _first_after(rows: pa.Table, end: Key, by_path: bool) -> int:
    return bisect_right(range(len(rows)), end, key=lambda row: _key(rows, row, by_path))


def _key(rows: pa.Table, row: int, by_path: bool = False) -> Key:
    return "" if by_path else rows["root"][row].as_py(), rows["path"][row].as_py()


def _piece(old: pa.Table, new: pa.Table, by_path: bool) -> Piece:
    keys = [_keys(rows, by_path) for rows in (old, new)]
    row = pc.index_in(keys[0], value_set=keys[1])
    n_both = len(row) - row.null_count
    return Piece(
        old.filter(pc.is_valid(row)),
        new.take(row.drop_null()),
        len(old) - n_both,
        len(new) - n_both,
    )


def _keys(rows: pa.Table, by_path: bool) -> pa.Array:
    """Root and path as one value, joined by NUL: the one byte that no path has."""
    text = pa.large_string()
    path = rows["path"].cast(text)
    if not by_path:
        path = pc.binary_join_element_wise(rows["root"].cast(text), path, pa.scalar("\0", text))
    return path.combine_chunks()
