"""Folders -> image files: the listing a plan is made from (schema jobs.plan.LISTING).

A file is an image when its name says so (EXTENSIONS, or the user's --include); whether it really
is one the decoder finds out. A file named on the command line is always taken. Names beginning
with a dot are left out, as a shell's * does. Links are followed; a link to a folder it lies in is
not, so that loops end. Nothing is opened here, and no Python object an image is kept.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa

from jobs.plan import LISTING

from .errors import UsageError
from .names import display, escape_name

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
    ]
)

_CHUNK_ROWS = 65_536


@dataclass
class Scan:
    """What a scan found. `unlisted` are (root, folder) pairs that could not be read, with the reason."""

    listing: pa.Table
    unlisted: dict[tuple[str, str], str] = field(default_factory=dict)
    emptied: list[str] = field(default_factory=list)  # roots without an image of which there are rows
    n_other: int = 0  # files that are no images by name, and names with a leading dot


def scan(
    paths: Iterable[Path],
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    listed: bytes | None = None,
) -> Scan:
    """List the images below folders, files named one by one, and those of a list (from read_list).

    Raises UsageError for a path that does not exist.
    """
    found = Scan(LISTING.empty_table())
    wanted = _Wanted(include, exclude)

    def entries() -> Iterator[tuple[str, bytes, os.stat_result | None]]:
        for path in paths:
            absolute = os.path.abspath(path)
            if os.path.isdir(absolute):
                yield from _walk(absolute, wanted, found)
            elif os.path.lexists(absolute):
                folder, name = os.path.split(absolute)
                yield folder, os.fsencode(name), _stat(absolute)
            else:
                raise UsageError(f"{path} does not exist; name folders or files of photos")
        if listed is not None:
            for name in _split_list(listed):
                root, relative = _split_listed(name)
                yield root, os.fsencode(relative), _stat(os.path.join(root, relative))

    found.listing = _to_table(entries())
    return found


class _Wanted:
    """Which names a scan takes: --include instead of the known extensions, --exclude after both.

    A pattern without a slash is matched with the last part of a path, one with a slash with all of it.
    """

    def __init__(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
        self.include, self.exclude = include, exclude

    def file(self, path: str) -> bool:
        if self.include:
            wanted = any(_matches(path, pattern) for pattern in self.include)
        else:
            wanted = os.path.splitext(path)[1].lower() in EXTENSIONS and not os.path.basename(path).startswith(".")
        return wanted and not self.excluded(path)

    def excluded(self, path: str) -> bool:
        return any(_matches(path, pattern) for pattern in self.exclude)


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else os.path.basename(path), pattern)


def _walk(root: str, wanted: _Wanted, found: Scan) -> Iterator[tuple[str, bytes, os.stat_result | None]]:
    """Yield the images below a folder, depth first, with the identities of the folders above kept."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        full = os.path.join(root, folder) if folder else root
        try:
            info = os.stat(full)
            identity = (info.st_dev, info.st_ino)
            if identity in above:
                continue  # a link back to a folder we are inside of
            with os.scandir(full) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        if not entry.name.startswith(".") and not wanted.excluded(path):
                            pending.append((path, above | {identity}))
                    elif wanted.file(path):
                        yield root, os.fsencode(path), _stat_entry(entry)
                    else:
                        found.n_other += 1
        except OSError as error:
            found.unlisted[display(root), display(folder)] = error.strerror or str(error)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or in a circle
        return False


def _stat_entry(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def read_list(files_from: str | None) -> bytes | None:
    """Read the list of files that --files-from names ("-" is stdin); None where it was not given."""
    if files_from is None:
        return None
    try:
        return sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as error:
        raise UsageError(f"the list of files {files_from} cannot be read: {error.strerror or error}") from error


def _split_list(listed: bytes) -> Iterator[str]:
    """Yield the names of a list: one a line, or NUL-terminated where it holds a NUL (find -print0)."""
    names = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
    return (os.fsdecode(name) for name in names if name.strip())


def _split_listed(name: str) -> tuple[str, str]:
    """Return root and path of a listed file: below the working folder, or else below /."""
    here = os.getcwd()
    absolute = os.path.normpath(os.path.join(here, name))
    if not os.path.isabs(name) and absolute.startswith(here.rstrip("/") + "/"):
        return here, absolute[len(here.rstrip("/")) + 1 :]
    return "/", absolute.lstrip("/")


def _to_table(entries: Iterator[tuple[str, bytes, os.stat_result | None]]) -> pa.Table:
    """Collect entries into Arrow, a chunk of Python rows at a time."""
    batches: list[pa.RecordBatch] = []
    rows: list[tuple[str, str, bytes | None, int | None, int | None]] = []

    def flush() -> None:
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
        batches.append(pa.record_batch(arrays, schema=LISTING))
        rows.clear()

    for root, name, info in entries:
        path, path_bytes = escape_name(name)
        # Anything but a regular file keeps no size: it is listed, never opened, and looked at again.
        regular = info is not None and stat.S_ISREG(info.st_mode)
        size, mtime = (info.st_size, info.st_mtime_ns // 1000) if info and regular else (None, None)
        rows.append((display(root), path, path_bytes, size, mtime))
        if len(rows) == _CHUNK_ROWS:
            flush()
    if rows:
        flush()
    return pa.Table.from_batches(batches, LISTING)
