"""Archives that grew: members were appended, and those that have a row need not be labelled again.

A row of an archive's image has the archive's time of change when it was labelled. In an archive
that grew the rows of the earlier members keep theirs, so the latest time among the rows of an
archive is the one at which all of them were looked at last.

That the earlier part is the same is concluded from what is cheap to look at: the same images of
the same sizes in front of the new ones, none changed later than the archive was by its own header,
and the same bytes (content_hash) in a few of them. Where any of it is not so, or nothing tells, all
of the archive is taken for changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import xxhash

from jobs.keys import range_below
from jobs.plan import KNOWN

# About so many images' bytes are, of up to 13 all: each is a request where the archive is in a store.
_COMPARED = 8

Archive = tuple[str, str]  # its root, and its path below
Hashes = Callable[[str, Sequence[str]], Mapping[str, str | None]]


def _no_hashes(root: str, paths: Sequence[str]) -> Mapping[str, str | None]:
    return {}


@dataclass(frozen=True)
class KnownArchives:
    """What a table knows of images in archives.

    `settled` are the archives of which all rows would be carried over, with their time of change:
    those that still have it are not looked into again. `rows` (KNOWN, in order) are of all images
    in archives, and `hashes` gives the content_hash of some, by root and paths.
    """

    settled: Mapping[Archive, int] = field(default_factory=dict)
    rows: pa.Table = field(default_factory=KNOWN.empty_table)
    hashes: Hashes = _no_hashes

    def images_in(self, archive: Archive) -> dict[str, "State"]:
        """The rows of an archive: by path, what its image was."""
        start, end = range_below(self.rows, *archive)
        rows = self.rows.slice(start, end - start)
        columns = rows["path"], rows["size_bytes"], rows["mtime"].cast(pa.int64())
        values = zip(*(column.to_pylist() for column in columns), strict=True)
        return {path: State(size, mtime) for path, size, mtime in values}


class State(NamedTuple):
    """An image's size, and the time of its row, in microseconds."""

    size: int | None
    mtime: int | None


class Image(NamedTuple):
    """A member of an archive: its path as rows have it, its place, and its own time of change, in
    seconds.
    """

    path: str
    offset: int
    size: int
    changed_s: float


def row_times(
    images: Sequence[Image],
    known: Mapping[str, State],
    mtime: int | None,
    file: BinaryIO,
    hashes: Callable[[Sequence[str]], Mapping[str, str | None]],
) -> list[int | None]:
    """The time that the row of each image is to have: for those that are known and the same the time
    that it has, and for others `mtime`, the archive's. `file` is the archive.
    """
    times = [state.mtime for state in known.values() if state.mtime is not None]
    if mtime is None or not times or len(times) < len(known):
        return [mtime] * len(images)
    if mtime == max(times):  # nothing was appended since all rows were looked at
        n_old = len(images)
    else:
        n_old = _n_earlier(images, known)
        if not 0 < n_old < len(images) or not _are_the_same(images[:n_old], known, file, hashes):
            n_old = 0
    return [
        known[image.path].mtime if number < n_old and _is_known(image, known) else mtime
        for number, image in enumerate(images)
    ]


def _is_known(image: Image, known: Mapping[str, State]) -> bool:
    return image.path in known and known[image.path].size == image.size


def _n_earlier(images: Sequence[Image], known: Mapping[str, State]) -> int:
    """How many images in front are those that are known, and all of them; 0 where they are not.

    Of members with one name the last counts, as in a listing.
    """
    sizes: dict[str, int] = {}
    n_same = 0
    for number, image in enumerate(images):
        if image.path not in known:
            return 0
        before, size = sizes.get(image.path), known[image.path].size
        n_same += (image.size == size) - (before is not None and before == size)
        sizes[image.path] = image.size
        if n_same == len(known):
            return number + 1
    return 0


def _are_the_same(
    earlier: Sequence[Image],
    known: Mapping[str, State],
    file: BinaryIO,
    hashes: Callable[[Sequence[str]], Mapping[str, str | None]],
) -> bool:
    last = {image.path: image for image in earlier}
    for image in last.values():
        time = known[image.path].mtime
        assert time is not None
        if not image.changed_s * 1e6 <= time:  # whatever is no number is not, either
            return False
    step = max(1, len(earlier) // (_COMPARED - 1))
    paths = list(dict.fromkeys(image.path for image in [*earlier[::step], earlier[-1]]))
    expected = hashes(paths)
    looked_at = 0
    for path in paths:
        if (digest := expected.get(path)) is None:  # one that could not be read
            continue
        file.seek(last[path].offset)
        if xxhash.xxh3_128_hexdigest(file.read(last[path].size)) != digest:
            return False
        looked_at += 1
    return looked_at > 0
