"""Donors: rows of a table that may give their labels to images whose bytes they turn out to have.

    donors    high, low (uint64): the 128 bits of the row's content_hash; labels (int64): its number
              in the table; and by the name of each other product its row there

An image that was moved or copied is new by its key. Which rows could be of it is told by the size
alone, before anything is read; whether one is, by the bytes (pipeline/load/reuse.py). In the order of
the hashes, so that they are found in a file that is mapped and never read as a whole. Pure.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .keys import one_array
from .receipts import LABELS

_CHUNK_ROWS = 131_072


def may_give(pending: pa.Table, known: pa.Table, fingerprint: str) -> pa.Array:
    """The numbers (int64, ascending) of the known rows that have a label of `fingerprint` and the
    size of an image that is new.
    """
    sizes = pc.unique(new_ones(pending)["size_bytes"])
    if not len(sizes) or not len(known):
        return pa.array([], pa.int64())
    is_ours = pc.and_(pc.equal(known["status"], "ok"), pc.equal(known["fingerprint"], fingerprint))
    is_alike = pc.is_in(known["size_bytes"], value_set=sizes)
    return pc.indices_nonzero(pc.and_(is_ours, is_alike)).cast(pa.int64())


def make_donors(
    rows: pa.Array, hashes: pa.Array | pa.ChunkedArray, rows_of: Mapping[str, pa.Array]
) -> pa.Table:
    """Donors of the rows with those numbers, whose `hashes` are content_hash: 32 hex digits, or null
    of a row that cannot give. `rows_of` has the row of each in the other products, null where it
    lacks one: then it cannot give either.
    """
    hashes = one_array(hashes.cast(pa.large_string()))  # of 67 million rows they take over 2 GB
    is_whole = pc.fill_null(pc.match_substring_regex(hashes, "^[0-9a-f]{32}$"), False)
    for numbers in rows_of.values():
        is_whole = pc.and_(is_whole, pc.is_valid(numbers))
    high, low = _as_numbers(hashes.filter(is_whole))
    order = pa.array(np.lexsort([low, high]))
    columns = {"high": pa.array(high), "low": pa.array(low), LABELS: rows.filter(is_whole)}
    columns |= {name: numbers.filter(is_whole) for name, numbers in rows_of.items()}
    return pa.table(columns).take(order)


def count_likely(pending: pa.Table, known: pa.Table, rows: pa.Array) -> int:
    """How many new images are most likely copies of known rows with those numbers: the size is the
    same, and so is the time of change or the name. Only the bytes can tell.
    """
    new, known = new_ones(pending), known.select(["path", "size_bytes", "mtime"])
    looked_for = [one_array(told(new)) for told in (_by_time, _by_name)]
    is_likely = pa.array(np.zeros(len(new), np.bool_))
    # Some at once, so that the names of all are never in memory; no fewer than are looked for.
    at_once, ascending = max(_CHUNK_ROWS, len(new)), np.sort(rows.to_numpy())
    for start in range(0, len(rows), at_once):
        numbers = ascending[start : start + at_once]
        first, end = int(numbers[0]), int(numbers[-1]) + 1
        donors = known.slice(first, end - first).take(pa.array(numbers - first))
        for keys, told in zip(looked_for, (_by_time, _by_name), strict=True):
            is_there = pc.is_in(keys, value_set=one_array(told(donors)), skip_nulls=True)
            is_likely = pc.or_(is_likely, is_there)
    return int(pc.sum(is_likely, min_count=0).as_py())


def new_ones(pending: pa.Table) -> pa.Table:
    return pending.filter(pc.equal(pending["action"], "new"))


def _by_time(rows: pa.Table) -> pa.ChunkedArray:
    times = rows["mtime"].cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(_sizes(rows), times, "/")  # null without a time


def _by_name(rows: pa.Table) -> pa.ChunkedArray:
    names = pc.replace_substring_regex(rows["path"], r"(?s)^.*/", "")
    return pc.binary_join_element_wise(_sizes(rows), names, "/")


def _sizes(rows: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(rows["size_bytes"].cast(pa.string()), "")


def _as_numbers(hashes: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of 32 hex digits (large_string, no nulls) as the upper and lower 64 bits of each."""
    if not len(hashes):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    _, offsets, digits = hashes.buffers()
    first = np.frombuffer(offsets, np.int64)[hashes.offset]
    text = digits[first : first + 32 * len(hashes)].to_pybytes().decode("ascii")
    numbers = np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]
