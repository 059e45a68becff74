"""KeptRows: which rows of a table stay as they are, since nobody can look at what they are of.

The rows of a folder are looked for under each name they may have: the PATHs may have been others
the night before.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.keys import is_among, range_below

from .found import Scan
from .overlap import Folder, Places, below, joined


class KeptRows:
    """`rows` (bool, one a row of `known`) says which are kept. Those at or below the folders
    `forget` need not be.
    """

    def __init__(self, found: Scan, known: pa.Table, forget: Sequence[str]) -> None:
        self.found, self.known, self.forget = found, known, forget
        self.rows = np.zeros(len(known), bool)
        self._roots: list[str] = pc.unique(known["root"]).to_pylist()

    @cached_property
    def seen(self) -> Places:
        """What was found. A name on a list says nothing of the folder it should be in."""
        listing, lost = self.found.listing, self.found.lost
        lost = lost.filter(lost["is_listed"])
        if len(lost):
            listing = listing.filter(pc.invert(is_among(listing, lost)))
        return Places(listing, self.found.unchanged)

    def mark(self, root: str, folder: str = "") -> bool:
        """Keep the rows of a folder, under whichever name; say whether there are any."""
        any_row = False
        for place in dict.fromkeys(self._names_of(root, folder)):
            if place != (root, folder) and self.seen.holds_any(place):
                continue  # so it was looked into under that name
            start, end = range_below(self.known, *place)
            self.rows[start:end] = True
            any_row |= end > start
        return any_row

    def _names_of(self, root: str, folder: str) -> Iterator[Folder]:
        yield root, folder
        for outer, inner in self.found.inner.get(root, ()):
            yield outer, joined(inner, folder)
        if self._roots == [root]:
            return
        place = joined(root, folder)
        for known in self._roots:
            if (path := below(place, known)) is not None:
                yield known, path
            elif below(known, place) is not None and known not in self.found.folders:
                yield known, ""

    def is_forgotten(self, place: str) -> bool:
        """Whether the rows of a folder are to be dropped."""
        return any(below(place, each) is not None for each in self.forget)

    @cached_property
    def forgotten(self) -> np.ndarray:
        """Which rows are to be dropped (bool, one a row)."""
        is_forgotten = np.zeros(len(self.rows), bool)
        for start, end in self._forgotten_ranges():
            is_forgotten[start:end] = True
        return is_forgotten

    def _forgotten_ranges(self) -> Iterator[tuple[int, int]]:
        """The rows that each folder to forget has."""
        for folder in self.forget:
            for root in self._roots:
                if below(root, folder) is not None:
                    yield range_below(self.known, root, "")
                elif (path := below(folder, root)) is not None:
                    yield range_below(self.known, root, path)
