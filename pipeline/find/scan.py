"""Folders, buckets, archives and tables -> images: the listing a plan is made from (schema
jobs.plan.LISTING).

A file is an image when its name says so (EXTENSIONS, or the user's --include); whether it really
is one the decoder finds out. A file named on the command line is always taken. Names beginning
with a dot are left out, as a shell's * does. Links are followed; a link to a folder it lies in is
not, so that loops end. Archives and tables of images are looked into (containers.py); no image is
opened here, and no Python object an image is kept.
"""

import gc
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileInfo, FileType

from jobs.archives import is_archive
from jobs.plan import LISTING
from jobs.storage.object_store import AnyPath, StorePath
from pipeline.errors import UsageError
from pipeline.path_names import display, escape_text

from .file_list import split_list, split_listed
from .image_tables import has_column, keys, opened
from .left_out import LeftOut
from .links import LINKS_KEPT, repeated_links
from .lost import LOST, Lost, is_not_there
from .overlap import joined, lies_in, one_row_each
from .selection import IMAGE, PACKED, TABLE, TAR, Wanted
from .source import locate
from .tar_archives import Damaged, members
from .walk import is_mount, walk, walk_store

_CHUNK_ROWS = 65_536

# Root, path below it, size, time of change in microseconds; and of an image in a container: its
# place, and where in it.
Entry = tuple[str, str, int | None, int | None, str | None, int | None]


@dataclass
class Scan:
    """What a scan found.

    `unlisted` are (root, folder) pairs that could not be read, with the reason. `nowhere` are PATHs
    that are links whose target is gone or cannot be looked up: a file each, as far as one can tell,
    and listed so under the key given here.
    """

    listing: pa.Table
    unlisted: dict[tuple[str, str], str] = field(default_factory=dict)
    unchanged: list[tuple[str, str]] = field(
        default_factory=list
    )  # (root, archive), not looked into again
    folders: list[str] = field(default_factory=list)  # the roots that were looked into
    mounts: list[tuple[str, str]] = field(default_factory=list)  # (root, folder) on other devices
    inner: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict
    )  # PATHs in others, as root -> each (root, folder)
    nowhere: dict[str, tuple[str, str]] = field(default_factory=dict)  # root -> its row's key
    lost: pa.Table = field(default_factory=LOST.empty_table)
    n_names: int = 0  # of the list
    n_repeated: int = 0  # images below several roots, which have one row
    linked: list[str] = field(
        default_factory=list
    )  # about links to what is listed under another name, too
    other: LeftOut = field(
        default_factory=LeftOut
    )  # files that are no images by name, or hidden by a leading dot

    @property
    def n_other(self) -> int:
        return self.other.total()

    def pop_listing(self) -> pa.Table:
        """The listing, no longer held here: of very many images it takes much memory."""
        listing, self.listing = self.listing, LISTING.empty_table()
        return listing


def scan(
    paths: Iterable[AnyPath],
    wanted: Wanted | None = None,
    listed: bytes | None = None,
    known_archives: Mapping[tuple[str, str], int] | None = None,
) -> Scan:
    """List the images below folders, files named one by one, and those of a list (from read_list).

    `known_archives` are (root, archive) with their time of change; those that still have it are not
    looked into again. Raises UsageError for a path that does not exist.
    """
    paths = tuple(paths)
    scanner = _Scanner(paths, wanted or Wanted(), known_archives or {})
    scanner.found.inner = lies_in([display(root_of(path)) for path in paths])
    with _no_garbage_collection():
        scanner.found.listing = _to_table(scanner.entries(listed))
    found = scanner.found
    found.lost = scanner.lost.to_table()
    n_listed = len(found.listing)
    found.listing, found.unchanged = one_row_each(
        found.pop_listing(), found.unchanged, scanner.given
    )
    found.n_repeated = n_listed - len(found.listing)
    found.linked = repeated_links(
        scanner.links, scanner.folders, scanner.wanted.folder, found.listing
    )
    return found


def root_of(path: AnyPath) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else str(path)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For many small values without cycles, which the collector would look through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Scanner:
    def __init__(
        self,
        paths: Sequence[AnyPath],
        wanted: Wanted,
        known_archives: Mapping[tuple[str, str], int],
    ) -> None:
        self.paths, self.wanted, self.known_archives = paths, wanted, known_archives
        self.found = Scan(LISTING.empty_table())
        self.given: list[str] = []  # the roots of the PATHs
        self.folders: list[str] = []  # those on disk that are looked into
        self.links: list[tuple[str, str]] = []  # in them, to other folders
        self.lost = Lost()

    def entries(self, listed: bytes | None) -> Iterator[Entry]:
        for path in self.paths:
            if isinstance(path, StorePath):
                yield from self._in_store(path)
            else:
                yield from self._on_disk(path)
        if listed is not None:
            for name in split_list(listed):
                root, relative = split_listed(name)
                self.found.n_names += 1
                size, time = None, None
                try:
                    size, time = _size_and_time(os.stat(os.path.join(root, relative)))
                except OSError as error:
                    self.lost.add(display(root), relative, error, is_listed=True)
                yield display(root), relative, size, time, None, None

    def _on_disk(self, path: Path) -> Iterator[Entry]:
        absolute = os.path.abspath(path)
        root = display(absolute)
        try:
            status = os.stat(absolute)
        except OSError as error:
            yield from self._nowhere(path, absolute, error)
            return
        if stat.S_ISDIR(status.st_mode):
            self.given.append(root)
            self.found.folders.append(root)
            self.folders.append(absolute)
            if is_mount(absolute):
                self.found.mounts.append((root, ""))
            for relative, entry in walk(
                absolute, self.wanted.folder, self.found.unlisted, self._linked, self._mounted
            ):
                kind = self.wanted.kind(relative)
                if kind == IMAGE:
                    yield root, relative, *self._stamp(root, relative, entry), None, None
                elif kind is None:
                    self.found.other.add(relative)
                    if _may_be_link(entry) and self.wanted.folder(relative):
                        self._stamp(root, relative, entry, is_image=False)
                else:
                    stamp = self._stamp(root, relative, entry, is_image=False)
                    yield from self._container(kind, absolute, relative, *stamp)
        else:
            yield from self._named(absolute, *_size_and_time(status))

    def _nowhere(self, path: Path, absolute: str, error: OSError) -> Iterator[Entry]:
        """A PATH that cannot be looked up: a link to a file or to a folder, nobody can say which."""
        if not os.path.lexists(absolute):
            if is_not_there(error):
                raise UsageError(f"{path} does not exist; name folders or files of photos")
            raise UsageError(f"{path} cannot be looked at: {error.strerror or error}")
        folder, _, name = absolute.rpartition("/")
        self.found.nowhere[display(absolute)] = display(folder or "/"), display(name)
        self.lost.add(display(folder or "/"), name, error)
        yield from self._named(absolute, None, None)

    def _stamp(
        self, root: str, path: str, entry: "os.DirEntry[str]", is_image: bool = True
    ) -> tuple[int | None, int | None]:
        """Size and time of what a folder lists. Noted is what cannot be looked up; but not a file
        that went since, which is simply gone.
        """
        try:
            return _size_and_time(_stat_entry(entry))
        except OSError as error:
            if not is_not_there(error) or _may_be_link(entry):
                self.lost.add(root, path, error, is_image)
            return None, None

    def _mounted(self, path: str) -> None:
        self.found.mounts.append((self.found.folders[-1], display(path)))

    def _linked(self, path: str) -> None:
        if len(self.links) < LINKS_KEPT:
            self.links.append((self.folders[-1], path))

    def _in_store(self, path: StorePath) -> Iterator[Entry]:
        info = path.info()
        if info.type == FileType.File:
            yield from self._named(str(path), info.size, _mtime_of(info))
            return
        if info.type == FileType.NotFound:
            raise UsageError(
                f"{path} does not exist; name a bucket, or a folder or an object in one"
            )
        self.given.append(display(str(path)))
        self.found.folders.append(display(str(path)))
        for relative, entry in walk_store(path, self.wanted.folder, self.found.unlisted):
            kind = self.wanted.kind(relative)
            if kind == IMAGE:
                yield display(str(path)), relative, entry.size, _mtime_of(entry), None, None
            elif kind is None:
                self.found.other.add(relative)
            else:
                yield from self._container(kind, str(path), relative, entry.size, _mtime_of(entry))

    def _named(self, full: str, size: int | None, mtime: int | None) -> Iterator[Entry]:
        """A file that the command names: taken whatever it is called."""
        folder, _, name = full.rpartition("/")
        self.given.append(display(full if full.lower().endswith(TABLE) else folder or "/"))
        if full.lower().endswith(PACKED):
            raise UsageError(
                f"{full} is a compressed archive, which cannot be read from the middle; make it a "
                ".tar"
            )
        if full.lower().endswith(TABLE):
            if self.wanted.image_column is None:
                raise UsageError(
                    f"{full} is a table; name its column of images with --image-column"
                )
            yield from self._table(full, "", mtime)
        elif is_archive(full):
            yield from self._archive(folder or "/", name, size, mtime)
        else:
            yield display(folder or "/"), name, size, mtime, None, None

    def _container(
        self, kind: str, root: str, path: str, size: int | None, mtime: int | None
    ) -> Iterator[Entry]:
        """An archive or a table that was found below a root."""
        if kind == TAR:
            yield from self._archive(root, path, size, mtime)
            return
        try:
            has_images = self._has_images(root, path)
        except OSError as error:  # as of an archive: what is in it is not known
            self.found.unlisted[display(root), display(path)] = error.strerror or str(error)
            return
        if has_images:
            yield from self._table(root, path, mtime)
        else:
            self.found.other.add(path)

    def _has_images(self, root: str, path: str) -> bool:
        assert self.wanted.image_column
        with opened(locate(display(root), display(path), places=self.paths)) as file:
            return has_column(file, self.wanted.image_column)

    def _archive(
        self, root: str, path: str, size: int | None, mtime: int | None
    ) -> Iterator[Entry]:
        key = display(root), display(path)
        place = display(f"{root.rstrip('/')}/{path}")
        for known in [*self._better_names(key, place), key] if self.known_archives else ():
            if mtime is not None and self.known_archives.get(known) == mtime:
                self.found.unchanged.append(known)
                return
        try:
            with opened(locate(*key, places=self.paths)) as file:
                for name, offset, length in members(file):
                    member = f"{path}/{os.fsdecode(name).removeprefix('./')}"
                    if self.wanted.kind(member) == IMAGE:
                        yield key[0], member, length, mtime, place, offset
                    else:
                        self.found.other.add(member)
        except Damaged:
            # A row of its own says so, beside those of the members before the damage.
            yield key[0], path, size, mtime, place, None
        except OSError as error:
            self.found.unlisted[key] = error.strerror or str(
                error
            )  # as of a folder: what is in it is not known

    def _better_names(self, key: tuple[str, str], place: str) -> Iterator[tuple[str, str]]:
        """Under which other PATHs the rows of an archive may be."""
        yield from self.found.inner.get(place, ())  # where it was named outright
        for outer, folder in self.found.inner.get(key[0], ()):
            yield outer, joined(folder, key[1])

    def _table(self, root: str, path: str, mtime: int | None) -> Iterator[Entry]:
        full = f"{root.rstrip('/')}/{path}" if path else root
        assert self.wanted.image_column
        try:
            with opened(locate(display(full), places=self.paths)) as file:
                for key, row in keys(file, self.wanted.image_column, self.wanted.key_column, full):
                    yield (
                        display(root),
                        f"{path}/{key}" if path else key,
                        None,
                        mtime,
                        display(full),
                        row,
                    )
        except (OSError, Damaged) as error:
            raise UsageError(f"{full} cannot be read: {error}") from error


def _size_and_time(status: os.stat_result) -> tuple[int | None, int | None]:
    # Anything but a regular file keeps no size: it is listed, never opened, and looked at again.
    if not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns // 1000


def _stat_entry(entry: "os.DirEntry[str]") -> os.stat_result:
    return entry.stat()


def _may_be_link(entry: "os.DirEntry[str]") -> bool:
    """Known without looking it up, on nearly all file systems; where not even that can be said, it
    may.
    """
    try:
        return entry.is_symlink()
    except OSError:
        return True


def _mtime_of(info: FileInfo) -> int | None:
    return None if info.mtime_ns is None else info.mtime_ns // 1000


def _to_table(entries: Iterator[Entry]) -> pa.Table:
    """Collect entries into Arrow, a chunk of Python rows at a time."""
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
