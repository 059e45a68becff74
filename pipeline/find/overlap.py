"""PATHs that lie in one another, or are one folder under two names: a file below several has one
row.

That row is under the outermost PATH. Of two names of one folder it is the one that is no link, or
else the one given first; a PATH comes before --files-from. What only an inner PATH takes keeps its
row there: a file named outright, or in a folder that the outer PATH leaves out. Places are compared
by their real paths and then as they are written; no file is looked up. All in Arrow, and only of
PATHs that do overlap.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.keys import range_below
from jobs.storage.object_store import is_uri
from pipeline.path_names import escape_name, unescape_name

Archive = tuple[str, str]  # its root, and its path below
Folder = tuple[str, str]  # the same; "" is the root itself

_ROWS_AT_ONCE = 1 << 20

_Places = Mapping[str, bytes]  # root -> where it lies, with a slash at the end


def one_row_each(
    listing: pa.Table, unchanged: Sequence[Archive], given: Sequence[str]
) -> tuple[pa.Table, list[Archive]]:
    """Drop rows, and archives that were not looked into, which have a better root as well.

    `given` are the roots of the PATHs, in order; other roots are those of a list.
    """
    roots = list(
        dict.fromkeys(
            [*given, *pc.unique(listing["root"]).to_pylist(), *(root for root, _ in unchanged)]
        )
    )
    real, written = _places(roots)
    kept = list(dict.fromkeys(unchanged))
    for places in (real, written):
        related = _related(places)
        if not related:
            continue
        ranks = _ranks(related, places, written, given)
        if kept:
            listing, kept = _one_archive_each(listing, kept, places, ranks)
        listing = _one_file_each(listing, places, ranks)
    return listing, kept


def lies_in(given: Sequence[str]) -> dict[str, list[Folder]]:
    """For each PATH that lies in others, or is another one by a second name: which folders of those
    it is, the best first.

    Its images may have their rows under each of these.
    """
    real, written = _places(given)
    found: dict[str, dict[Folder, None]] = {}
    for places in (real, written):
        ranks = _ranks(_related(places), places, written, given)
        at: dict[bytes, list[str]] = {}
        for root in ranks:  # in the order of their ranks
            at.setdefault(places[root], []).append(root)
        for root, rank in ranks.items():
            for outer in reversed([places[root], *above(places[root])]):
                folder = escape_name(places[root][len(outer) :].rstrip(b"/"))[0]
                better = [other for other in at.get(outer, ()) if ranks[other] < rank]
                found.setdefault(root, {}).update(((other, folder), None) for other in better)
    return {root: list(folders) for root, folders in found.items() if folders}


def joined(folder: str, path: str) -> str:
    """A path below a folder, both as text. Escaped anew as a whole, since one of the two may need
    escapes that the other does not.
    """
    if not folder or not path:
        return folder or path
    return escape_name(slashed(unescape_name(folder)) + unescape_name(path))[0]


def below(place: str, root: str) -> str | None:
    """The path of a place from a root, both as written; None where it does not lie there."""
    inner, outer = slashed(unescape_name(place)), slashed(unescape_name(root))
    return escape_name(inner[len(outer) :].rstrip(b"/"))[0] if inner.startswith(outer) else None


def slashed(place: bytes) -> bytes:
    """A place as the beginning of all paths below it."""
    return place.rstrip(b"/") + b"/"


def above(place: bytes) -> Iterator[bytes]:
    """The folders that a place lies in, from the inside out."""
    while (end := place.rfind(b"/", 0, -1)) >= 0:
        place = place[: end + 1]
        yield place


def _places(roots: Iterable[str]) -> tuple[_Places, _Places]:
    """Where roots really lie, and where they lie as they are written."""
    written = {root: slashed(unescape_name(root)) for root in roots}
    real = {
        root: place if is_uri(root) else slashed(os.path.realpath(place))
        for root, place in written.items()
    }
    return real, written


def _related(places: _Places) -> list[str]:
    """The roots that lie in another root, hold one, or are the same place as one."""
    at: dict[bytes, list[str]] = {}
    for root, place in places.items():
        at.setdefault(place, []).append(root)
    related = {root for roots in at.values() if len(roots) > 1 for root in roots}
    for place, roots in at.items():
        for outer in above(place):
            if outer in at:
                related.update(roots, at[outer])
    return [root for root in places if root in related]


def _ranks(
    related: Iterable[str], places: _Places, written: _Places, given: Sequence[str]
) -> dict[str, int]:
    """The roots with their rank: where a file has several rows, the one with the lowest rank stays."""
    order = {root: number for number, root in enumerate(dict.fromkeys(given))}

    def rank(root: str) -> tuple[bool, int, bool, int]:
        depth = places[root].count(b"/")
        is_listed = root not in order
        return (
            is_listed,
            -depth if is_listed else depth,
            places[root] != written[root],
            order.get(root, 0),
        )

    return {root: number for number, root in enumerate(sorted(related, key=rank))}


def _one_file_each(listing: pa.Table, places: _Places, ranks: Mapping[str, int]) -> pa.Table:
    roots = list(ranks)
    counts = {
        entry["values"]: entry["counts"] for entry in pc.value_counts(listing["root"]).to_pylist()
    }
    largest = max(roots, key=lambda root: counts.get(root, 0))
    is_small = pa.array([root != largest for root in roots])
    names, prefixes = (
        pa.array(roots, pa.string()),
        pa.array([places[root] for root in roots], pa.large_binary()),
    )
    slices = [
        listing.slice(start, _ROWS_AT_ONCE) for start in range(0, len(listing), _ROWS_AT_ONCE)
    ]

    def full(rows: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """For each row the rank of its root, and its path with the root's place before it; null
        where no root is related.
        """
        rank = pc.index_in(rows["root"], value_set=names)
        binary = pa.large_binary()
        path = pc.coalesce(
            rows["path_bytes"].cast(binary), rows["path"].cast(pa.binary()).cast(binary)
        )
        return rank, pc.binary_join_element_wise(prefixes.take(rank), path, pa.scalar(b"", binary))

    # Of two rows of a file one at least is not of the root with the most; only the paths of the
    # others are kept.
    few: list[pa.Array] = []
    for rows in slices:
        rank, place = full(rows)
        few += place.filter(pc.fill_null(is_small.take(rank), False)).chunks
    looked_for = pa.chunked_array(few, pa.large_binary()).combine_chunks()
    met = []
    for rows in slices:
        rank, place = full(rows)
        is_met = pc.is_in(place, value_set=looked_for, skip_nulls=True)
        met.append(pa.table({"place": place.filter(is_met), "rank": rank.filter(is_met)}))
    if not met:
        return listing
    groups = pa.concat_tables(met).group_by("place").aggregate([("rank", "min"), ("rank", "max")])
    groups = groups.filter(pc.less(groups["rank_min"], groups["rank_max"])).combine_chunks()
    if not len(groups):
        return listing
    is_kept = []
    for rows in slices:
        rank, place = full(rows)
        best = groups["rank_min"].take(
            pc.index_in(place, value_set=groups["place"].combine_chunks(), skip_nulls=True)
        )
        is_kept += pc.fill_null(pc.less_equal(rank, best), True).chunks
    return listing.filter(pa.chunked_array(is_kept))


def _one_archive_each(
    listing: pa.Table, unchanged: list[Archive], places: _Places, ranks: Mapping[str, int]
) -> tuple[pa.Table, list[Archive]]:
    """The same for archives that were not looked into: they have no rows that could be compared."""
    inside = listing.filter(pc.is_valid(listing["container"])).select(["root", "container"])
    found: dict[tuple[str, str], bytes] = {}  # (root, container) -> where it lies
    for row in inside.group_by(inside.column_names).aggregate([]).to_pylist():
        root, container = row["root"], row["container"]
        if root in ranks:
            found[root, container] = (
                places[root] + unescape_name(container)[len(slashed(unescape_name(root))) :]
            )
    known = {
        (root, path): places[root] + unescape_name(path)
        for root, path in unchanged
        if root in ranks
    }
    best: dict[bytes, int] = {}
    for (root, _), place in [*found.items(), *known.items()]:
        best[place] = min(ranks[root], best.get(place, ranks[root]))
    kept = [
        archive
        for archive in unchanged
        if archive not in known or ranks[archive[0]] == best[known[archive]]
    ]
    worse = [
        f"{root}\0{container}"
        for (root, container), place in found.items()
        if ranks[root] > best[place]
    ]
    if not worse:
        return listing, kept
    # At once: there may be as many archives as there are images in one of them.
    large = pa.large_string()
    key = pc.binary_join_element_wise(
        listing["root"].cast(large), listing["container"].cast(large), pa.scalar("\0", large)
    )
    is_worse = pc.is_in(key, value_set=pa.array(worse, large))
    return listing.filter(pc.invert(is_worse)), kept


class Places:
    """Which folders of which roots have anything, of a listing in order and of archives not looked
    into.
    """

    def __init__(self, listing: pa.Table, unchanged: Iterable[Archive]) -> None:
        self.listing, self.unchanged = listing, sorted(unchanged)

    def holds_any(self, folder: Folder) -> bool:
        start, end = range_below(self.listing, *folder)
        if end > start:
            return True
        root, path = folder
        first = (root, f"{path}/" if path else "")
        place = bisect_left(self.unchanged, first)
        return (
            place < len(self.unchanged)
            and self.unchanged[place][0] == root
            and self.unchanged[place][1].startswith(first[1])
        )


def empty_roots(
    folders: Iterable[str], inner: Mapping[str, Sequence[Folder]], places: Places
) -> list[str]:
    """The roots below which there is no image, neither under their own name nor as a folder of
    another PATH.
    """
    return [
        root
        for root in folders
        if not any(map(places.holds_any, [(root, ""), *inner.get(root, ())]))
    ]
