"""Scan: what a scan found, and how entries become its listing (schema jobs.plan.LISTING).

All in Arrow: no image has a Python object of its own for longer than a chunk takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from jobs.plan import LISTING
from pipeline.path_names import escape_text

from .clutter import file_kind
from .left_out import LeftClutter, LeftOut
from .lost import LOST

_CHUNK_ROWS = 65_536

# Root, path below it, size, time of change in microseconds; and of an image in a container: its
# place, and where in it.
Entry = tuple[str, str, int | None, int | None, str | None, int | None]


@dataclass
class Scan:
    """What a scan found.

    `unlisted` are (root, folder) pairs that could not be read, with the reason. `nowhere` are PATHs
    that are links whose target is gone or cannot be looked up: nobody can say whether it was a
    file, but each is listed as one, under the key given here.
    """

    listing: pa.Table
    unlisted: dict[tuple[str, str], str] = field(default_factory=dict)
    # (root, archive), not looked into again
    unchanged: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # the roots that were looked into
    mounts: list[tuple[str, str]] = field(default_factory=list)  # (root, folder) on other devices
    # PATHs in others, as root -> each (root, folder)
    inner: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    nowhere: dict[str, tuple[str, str]] = field(default_factory=dict)  # root -> its row's key
    lost: pa.Table = field(default_factory=LOST.empty_table)
    n_names: int = 0  # of the list
    n_repeated: int = 0  # images below several roots, which have one row
    n_paired: int = 0  # left out beside another file of the same name (--pairs first)
    n_raw: int = 0  # raw photos among `other`, left out since nothing here reads them
    # About links to what is listed under another name, too.
    linked: list[str] = field(default_factory=list)
    # Files that are no images by name, or hidden by a leading dot.
    other: LeftOut = field(default_factory=LeftOut)
    clutter: LeftClutter = field(default_factory=LeftClutter)

    @property
    def n_other(self) -> int:
        return self.other.total()

    def leave_out(self, path: str) -> None:
        """Count a file that is not taken for its name."""
        if kind := file_kind(path[path.rfind("/") + 1 :]):
            self.clutter.add_file(kind)
        else:
            self.other.add(path)

    def pop_listing(self) -> pa.Table:
        """The listing, which is then no longer held here: with very many images it takes much
        memory.
        """
        listing, self.listing = self.listing, LISTING.empty_table()
        return listing


def to_listing(entries: Iterator[Entry]) -> pa.Table:
    """Collect entries, a chunk of Python rows at a time."""
    batches: list[pa.RecordBatch] = []
    while rows := list(islice(entries, _CHUNK_ROWS)):
        roots, names, sizes, times, containers, offsets = zip(*rows, strict=True)
        paths, path_bytes = zip(*map(escape_text, names), strict=True)
        columns = [roots, paths, path_bytes, sizes, times, containers, offsets]
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)
        ]
        batches.append(pa.record_batch(arrays, schema=LISTING))
    return pa.Table.from_batches(batches, LISTING)
