"""Folders, buckets, archives and tables -> images: the listing a plan is made from (schema
jobs.plan.LISTING).

A file is an image when its name says so (EXTENSIONS, or the user's --include); whether it really
is one the decoder finds out. A file named on the command line is always taken. Names beginning
with a dot are left out, as a shell's * does, and so is clutter (clutter.py). Links are followed; a
link to a folder it lies in is not, so that loops end. Archives and tables of images are looked into
(packed.py); no image is opened here.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pyarrow.fs import FileInfo, FileType

from jobs.archives import is_archive
from jobs.plan import LISTING
from jobs.storage.object_store import AnyPath, StorePath, is_uri
from pipeline.errors import UsageError
from pipeline.garbage import no_collection
from pipeline.path_names import display

from .clutter import folder_kind
from .file_list import split_list, split_listed
from .found import Entry, Scan, to_listing
from .grown import KnownArchives
from .links import LINKS_KEPT, repeated_links
from .lost import Lost, is_not_there
from .overlap import lies_in, one_row_each
from .packed import Packed
from .pairs import first_of_pairs
from .selection import IMAGE, PACKED, RAW_EXTENSIONS, TABLE, Selection
from .walk import is_mount, walk, walk_store


def scan(
    paths: Iterable[AnyPath],
    selection: Selection | None = None,
    listed: bytes | None = None,
    known_archives: KnownArchives | None = None,
) -> Scan:
    """List the images below folders, files named one by one, and those of a list (from read_list).

    `known_archives` is what a table knows of images in archives: one that has not changed is not
    looked into again. Raises UsageError for a path that does not exist.
    """
    paths = tuple(paths)
    scanner = _Scanner(paths, selection or Selection(), known_archives or KnownArchives())
    scanner.found.inner = lies_in([display(root_of(path)) for path in paths])
    with no_collection():
        scanner.found.listing = to_listing(scanner.entries(listed))
    found = scanner.found
    found.lost = scanner.lost.to_table()
    n_listed = len(found.listing)
    found.listing, found.unchanged = one_row_each(
        found.pop_listing(), found.unchanged, scanner.given
    )
    found.n_repeated = n_listed - len(found.listing)
    if scanner.selection.pairs == "first":
        n_listed = len(found.listing)
        found.listing = first_of_pairs(found.pop_listing())
        found.n_paired = n_listed - len(found.listing)
    if not scanner.selection.raw and not scanner.selection.include:
        found.n_raw = sum(found.other[extension] for extension in RAW_EXTENSIONS)
    found.linked = repeated_links(
        scanner.links, scanner.folders, scanner.selection.folder, found.listing
    )
    return found


def root_of(path: AnyPath) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else str(path)


class _Scanner:
    def __init__(
        self,
        paths: Sequence[AnyPath],
        selection: Selection,
        known_archives: KnownArchives,
    ) -> None:
        self.paths, self.selection = paths, selection
        self.found = Scan(LISTING.empty_table())
        self.packed = Packed(self.found, paths, selection, known_archives)
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
                absolute,
                partial(self._enters, absolute),
                self.found.unlisted,
                self._linked,
                self._mounted,
            ):
                kind = self.selection.kind(relative)
                if kind == IMAGE:
                    yield root, relative, *self._stamp(root, relative, entry), None, None
                elif kind is None:
                    self.found.leave_out(relative)
                    if _may_be_link(entry) and self.selection.folder(relative, absolute):
                        self._stamp(root, relative, entry, is_image=False)
                else:
                    stamp = self._stamp(root, relative, entry, is_image=False)
                    yield from self.packed.entries(kind, absolute, relative, *stamp)
        else:
            yield from self._named(absolute, *_size_and_time(status))

    def _enters(self, root: str, folder: str) -> bool:
        """Whether to look into a folder below a root; counts clutter that is not."""
        if self.selection.folder(folder, root):
            return True
        if self.selection.default_excludes and (kind := folder_kind(folder, root)):
            # To list a store's folder takes a request, and many more for those in it.
            place = None if is_uri(root) else os.path.join(root, folder)
            self.found.clutter.add_folder(kind, place)
        return False

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
        """Size and time of what a folder lists.

        What cannot be looked up is noted, unless the file went since it was listed: then it is
        simply gone.
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
        root = str(path)
        for relative, entry in walk_store(path, partial(self._enters, root), self.found.unlisted):
            kind = self.selection.kind(relative)
            if kind == IMAGE:
                yield display(str(path)), relative, entry.size, _mtime_of(entry), None, None
            elif kind is None:
                self.found.leave_out(relative)
            else:
                yield from self.packed.entries(
                    kind, str(path), relative, entry.size, _mtime_of(entry)
                )

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
            if self.selection.image_column is None:
                raise UsageError(
                    f"{full} is a table; name its column of images with --image-column"
                )
            yield from self.packed.table(full, "", mtime)
        elif is_archive(full):
            yield from self.packed.archive(folder or "/", name, size, mtime)
        else:
            yield display(folder or "/"), name, size, mtime, None, None


def _size_and_time(status: os.stat_result) -> tuple[int | None, int | None]:
    # Anything but a regular file keeps no size: it is listed, never opened, and looked at again.
    if not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns // 1000


def _stat_entry(entry: "os.DirEntry[str]") -> os.stat_result:
    return entry.stat()


def _may_be_link(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a link. Nearly all file systems say so without a lookup; where one does not, it
    may be.
    """
    try:
        return entry.is_symlink()
    except OSError:
        return True


def _mtime_of(info: FileInfo) -> int | None:
    return None if info.mtime_ns is None else info.mtime_ns // 1000
