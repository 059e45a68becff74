"""Keys: what tells images apart, root and path, and rows in the order of them, byte for byte.

All in Arrow, and a piece at a time: no image has a Python object of its own, and the keys of all
images are never in memory at once.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

_CHUNK_ROWS = 131_072  # compared at once


def is_in_order(rows: pa.Table) -> bool:
    """Whether rows are in the order of root and path, none with the same."""
    if len(rows) < 2:
        return True
    root, path = (rows[name].cast(pa.string()) for name in ("root", "path"))
    roots, paths = ((column.slice(1), column.slice(0, len(rows) - 1)) for column in (root, path))
    after = pc.or_(pc.greater(*roots), pc.and_(pc.equal(*roots), pc.greater(*paths)))
    return bool(pc.all(after).as_py())


def sort_and_drop_repeated(rows: pa.Table) -> pa.Table:
    """Put rows in the order of root and path; of those with the same (a PATH given twice) keep the
    first.
    """
    order = [("root", "ascending"), ("path", "ascending")]
    if "offset" in rows.column_names:
        order.append(
            ("offset", "descending")
        )  # of an archive's members with one name the last counts
    rows = rows.take(pc.sort_indices(rows, order))
    if len(rows) < 2:
        return rows
    differs = [
        pc.not_equal(rows[name].slice(1), rows[name].slice(0, len(rows) - 1))
        for name in ("root", "path")
    ]
    is_first = pa.chunked_array([pa.array([True]), *pc.or_(*differs).chunks])
    return rows if pc.all(is_first).as_py() else rows.filter(is_first)


def in_pieces(listing: pa.Table, known: pa.Table) -> Iterator[tuple[int, int, pa.Table, pa.Table]]:
    """Cut both, which are in order, into pieces with the same keys; yield them, and where each
    begins.

    This way the memory that a comparison takes does not grow with the number of images.
    """
    first = 0
    for start in range(0, len(listing), _CHUNK_ROWS):
        now = listing.slice(start, _CHUNK_ROWS)
        last_key = _key(now, len(now) - 1)
        end = bisect_right(range(len(known)), last_key, lo=first, key=lambda row: _key(known, row))
        yield start, first, now, known.slice(first, end - first)
        first = end


def _key(rows: pa.Table, row: int) -> tuple[str, str]:
    return rows["root"][row].as_py(), rows["path"][row].as_py()


def is_among(rows: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    """Of each row, whether one of the others has its root and path."""
    looked_for, chunks = one_array(keys_of(others)), list[pa.Array]()
    for start in range(0, len(rows), _CHUNK_ROWS):  # so that the keys of all are never in memory
        chunks += pc.is_in(keys_of(rows.slice(start, _CHUNK_ROWS)), value_set=looked_for).chunks
    return pa.chunked_array(chunks, pa.bool_())


def range_below(known: pa.Table, root: str, folder: str) -> tuple[int, int]:
    """The first and the end of the rows, known or listed and in order, below a folder of a root (""
    is all of the root).
    """
    first, end = (
        ((root, f"{folder}/"), (root, f"{folder}0")) if folder else ((root, ""), (f"{root}\0", ""))
    )  # 0 is / + 1
    start = bisect_left(range(len(known)), first, key=lambda row: _key(known, row))
    if start == len(known) or _key(known, start) >= end:  # quick, where nothing is below
        return start, start
    return start, bisect_left(range(len(known)), end, lo=start, key=lambda row: _key(known, row))


def keys_of(table: pa.Table) -> pa.ChunkedArray:
    """Root and path as one value, joined by NUL: the one byte that no path has. A large_string,
    since names may take over 2 GB.
    """
    text = pa.large_string()
    return pc.binary_join_element_wise(
        table["root"].cast(text), table["path"].cast(text), pa.scalar("\0", text)
    )


def one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
