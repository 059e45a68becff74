"""Roots that moved: a folder of photos that was renamed or mounted elsewhere, told by its listing alone.

A root is an absolute path and part of each row's key, so a renamed one would be labelled again from
its first photo on. Where a root is no longer named, and a new one holds the same relative paths with
the same sizes and times, its rows are carried over under the new name. Pure: nothing is read.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .keys import in_pieces, one_array

# A root has moved where at least this share of its rows has its file under the new name.
_LEAST_SHARE = 0.5
# The files must tell the folder from others: frames of one size, unpacked with one time for all,
# are alike in every folder of such. So their sizes and times must differ, in most of them and in
# this many at least. What is taken for no move is told by its bytes (donors.py).
_LEAST_DIFFERENT = 3

_SAMPLE = 64  # rows looked up first: most pairs of roots have nothing in common
_FILE = ["path", "size_bytes", "mtime"]


def find_moved(listing: pa.Table, known: pa.Table, named: Collection[str]) -> dict[str, str]:
    """The roots of `known` that moved, with their new names. Listing and known rows are in order.

    `named` are the roots that the command names: one that is there still has not moved.
    """
    of_listing, of_known = ranges_of_roots(listing), ranges_of_roots(known)
    gone = [root for root in of_known if root not in named and root not in of_listing]
    new = [root for root in of_listing if root not in of_known]
    if not gone or not new:
        return {}
    found = []
    for old, now in _alike(
        {root: known.slice(*of_known[root]) for root in gone},
        [listing.slice(*of_listing[root]) for root in new],
    ):
        n_same = _count_same(known.slice(*of_known[old]), listing.slice(*of_listing[now]))
        found += [(n_same, old, now)] if n_same else []
    moved: dict[str, str] = {}
    for _, old, now in sorted(found, key=lambda pair: (-pair[0], pair[1:])):
        if old not in moved and now not in moved.values():
            moved[old] = now
    return moved


def move_rows(rows: pa.Table, moved: Mapping[str, str]) -> pa.Table:
    """The rows with the roots that moved by their new names, in the order they were in."""
    place = rows.schema.get_field_index("root")
    column = rows["root"]
    renamed = pa.chunked_array([_renamed(chunk, moved) for chunk in column.chunks], column.type)
    return rows.set_column(place, rows.schema.field(place), renamed)


def order_after(known: pa.Table, moved: Mapping[str, str]) -> np.ndarray | None:
    """The row numbers of `known`, which is in order, in the order of the new names; None where that
    is the same.
    """
    ranges = ranges_of_roots(known)
    after = sorted(ranges, key=lambda root: moved.get(root, root))
    if after == list(ranges):
        return None
    return np.concatenate([np.arange(n) + first for first, n in (ranges[root] for root in after)])


def ranges_of_roots(rows: pa.Table) -> dict[str, tuple[int, int]]:
    """Each root of rows in order, with its first row and how many it has."""
    counts = pc.value_counts(rows["root"]).to_pylist() if len(rows) else []
    roots, first = dict[str, tuple[int, int]](), 0
    for entry in counts:  # in the order in which they appear
        roots[entry["values"]] = first, entry["counts"]
        first += entry["counts"]
    return roots


def _alike(before: Mapping[str, pa.Table], after: Iterable[pa.Table]) -> list[tuple[str, str]]:
    """The pairs of an old root and a new one that are worth comparing: of a few rows, spread over
    all of the old root, some have their file under the new one.
    """
    looked_for: dict[tuple[Any, ...], list[str]] = {}  # by path and state: the old roots with it
    n_sampled = {}
    for root, rows in before.items():
        places = np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).astype(int))
        n_sampled[root] = len(places)
        for row in rows.select(_FILE).take(pa.array(places)).to_pylist():
            looked_for.setdefault(tuple(row.values()), []).append(root)
    paths = pc.unique(pa.array([path for path, *_ in looked_for], pa.string()))
    n_found = Counter[tuple[str, str]]()
    for rows in after:
        root = rows["root"][0].as_py()
        for row in rows.select(_FILE).filter(pc.is_in(rows["path"], value_set=paths)).to_pylist():
            n_found.update((old, root) for old in looked_for.get(tuple(row.values()), ()))
    return [pair for pair, n in n_found.items() if n >= n_sampled[pair[0]] * _LEAST_SHARE / 2]


def _count_same(before: pa.Table, after: pa.Table) -> int:
    """How many rows of a root have their file, in the same state, under another; 0 where they are
    too few, or too much alike, to say that it is the same folder.
    """
    same = []
    before = move_rows(before, {before["root"][0].as_py(): after["root"][0].as_py()})
    for _, _, now, rows in in_pieces(after, before):
        row = pc.index_in(now["path"], value_set=one_array(rows["path"]))
        there = rows.select(["size_bytes", "mtime"]).take(one_array(row))
        is_same = pc.and_(
            pc.equal(now["size_bytes"], there["size_bytes"]), pc.equal(now["mtime"], there["mtime"])
        )  # null, which is not the same, where either is not known
        same.append(there.filter(pc.fill_null(is_same, False)))
    states = pa.concat_tables(same)
    if len(states) < _LEAST_SHARE * len(before):
        return 0
    n_different = len(states.group_by(["size_bytes", "mtime"]).aggregate([]))
    is_told = n_different >= max(_LEAST_DIFFERENT, len(states) / 2)
    return len(states) if is_told else 0


def _renamed(roots: pa.Array, moved: Mapping[str, str]) -> pa.Array:
    if isinstance(roots, pa.DictionaryArray):  # as a plan has them: of each root one value
        return pa.DictionaryArray.from_arrays(roots.indices, _renamed(roots.dictionary, moved))
    number = pc.index_in(roots, value_set=pa.array(list(moved), roots.type))
    return pc.coalesce(pa.array(list(moved.values()), roots.type).take(number), roots)
