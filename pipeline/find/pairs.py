"""Raw photos beside a JPEG of the same name: one shot in several files.

Of the files in one folder (or archive) that have the same name up to the extension, and of which
one at least is a raw photo, --pairs first takes one alone: a JPEG, else HEIC, else another image,
else a DNG, else the camera's own file. All in Arrow.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from .selection import RAW_EXTENSIONS

PAIRS = ("all", "first")

_ORDER = ((".jpg", ".jpeg", ".jpe", ".jfif"), (".heic", ".heif"))  # then others, DNG, other raws

_EXTENSION = r"\.[^./]*$"
_CHUNK_ROWS = 131_072


def first_of_pairs(listing: pa.Table) -> pa.Table:
    """Leave out what is not the first of a pair."""
    is_raw = _ends_in(listing["path"], sorted(RAW_EXTENSIONS))
    if not pc.any(is_raw, min_count=0).as_py():
        return listing
    looked_for = pc.unique(_keys(listing.filter(is_raw)))
    found = []
    for start in range(0, len(listing), _CHUNK_ROWS):  # so that the keys of all are never in memory
        rows = listing.slice(start, _CHUNK_ROWS)
        keys = _keys(rows)
        place = pc.indices_nonzero(pc.is_in(keys, value_set=looked_for))
        path = rows["path"].take(place)
        found.append(
            pa.table(
                {
                    "key": keys.take(place),
                    "rank": _rank(path),
                    "path": path,
                    "row": pc.add(place.cast(pa.int64()), start),
                }
            )
        )
    table = pa.concat_tables(found)
    table = table.sort_by([(name, "ascending") for name in ("key", "rank", "path")])
    keys = table["key"].combine_chunks()
    is_later = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    left = table["row"].slice(1).filter(is_later)
    numbers = pa.array(range(len(listing)), pa.int64()) if len(left) else None
    return listing if numbers is None else listing.filter(pc.invert(pc.is_in(numbers, left)))


def _keys(rows: pa.Table) -> pa.ChunkedArray:
    """Root and path up to the extension, joined by NUL: the one byte that no path has."""
    text = pa.large_string()
    stem = pc.replace_substring_regex(rows["path"], _EXTENSION, "")
    return pc.binary_join_element_wise(
        rows["root"].cast(text), stem.cast(text), pa.scalar("\0", text)
    )


def _rank(path: pa.ChunkedArray) -> pa.ChunkedArray:
    is_raw = _ends_in(path, sorted(RAW_EXTENSIONS))
    rank = pc.if_else(is_raw, pc.if_else(_ends_in(path, [".dng"]), 3, 4), 2)
    for number, extensions in enumerate(_ORDER):
        rank = pc.if_else(_ends_in(path, extensions), number, rank)
    return rank


def _ends_in(path: pa.ChunkedArray, extensions: "list[str] | tuple[str, ...]") -> pa.ChunkedArray:
    return pc.match_substring_regex(path, f"(?i)(?:{'|'.join(map(re.escape, extensions))})$")
