"""ReportFolder: the folder of a report, here or in a bucket, brought up to date file by file.

    report.json            the marker: what pages these are, and which files are ours
    index.html ...         pages, each replaced whole
    assets/, thumbs/       named by what is in them, and so never replaced

A reader sees each page as it was or as it is; index.html comes last. What a page of before may still
show is removed one report later. Nothing is ever removed but what the marker names and could be
ours, and assets and thumbnails, whose names nobody else gives. Sub-folders are never links: what
would be removed through one is another folder's.

Nothing here waits for the disk: after a power cut the same command makes what is missing.
"""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.records import read_record, record_version, write_record
from jobs.storage.atomic import children
from jobs.storage.object_store import REQUESTS_AT_ONCE, AnyPath, StorePath, scratch
from pipeline.errors import TableError

FIRST_PAGE = "index.html"
MARKER, _MARKER_VERSION = "report.json", 1
REPORT, DIFF = "label-images report", "label-images diff"  # what pages a folder has
_SUBFOLDERS = ("assets", "labels", "thumbs")
_LONGEST_NAME = 255  # bytes that a file system takes

# All names that files of a report have: a marker that somebody changed names no others.
_OURS = re.compile(
    rf"(?:(?:{'|'.join(_SUBFOLDERS)})/)?[a-z0-9][a-z0-9-]{{0,99}}\.(?:html|css|js|svg|jpg)"
)
_BY_CONTENT = re.compile(r"(?:thumbs/[0-9a-f]{32}\.jpg|assets/[a-z]+-[0-9a-f]{16}\.(?:css|js|svg))")

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}  # a browser shows what a bucket says it is
_ON_THEIR_WAY = 256  # files that are uploaded at the same time, or wait for it


def check_folder(place: AnyPath, kind: str = REPORT) -> None:
    """Raise TableError where pages of a `kind` may not be written: over what is none of it, through
    links, or where the disk takes none.
    """
    if isinstance(place, Path):
        if len(os.fsencode(place.name)) > _LONGEST_NAME:
            raise TableError(f"{place}: a name of more than {_LONGEST_NAME} bytes is too long")
        if place.is_symlink() and not place.exists():
            raise TableError(f"{place} is a link that leads nowhere; name a folder")
    if place.is_dir():
        if record_version(place / MARKER) is None and children(place):
            raise TableError(
                f"{place} is a folder with files, and no report of label-images: nothing of it is "
                "touched; name an empty or a new folder"
            )
        if record_version(place / MARKER) is not None and not _marker(place):
            raise TableError(
                f"{place}/{MARKER} is damaged, or of a newer label-images: which of the files are "
                "its own cannot be told; remove the folder yourself, or name another"
            )
        found = _marker(place).get("made_by", kind)
        if found != kind:
            raise TableError(
                f"{place} holds the pages of `{found}`, which those of `{kind}` would replace; "
                "name another folder"
            )
        if isinstance(place, Path):
            for name in _SUBFOLDERS:
                _check_subfolder(place / name)
    elif place.exists():
        raise TableError(f"{place} is a file; a report is a folder, name another place")


def _check_subfolder(folder: Path) -> None:
    if folder.is_symlink():
        raise TableError(
            f"{folder} is a link; pages are not written through links: remove it, or name another "
            "folder for them"
        )
    if folder.exists() and not folder.is_dir():
        raise TableError(f"{folder} is a file, where the pages need a folder; name another place")


class ReportFolder:
    """`write` each file, first_page last; then `finish`. Raises TableError (check_folder)."""

    def __init__(self, place: AnyPath, kind: str = REPORT) -> None:
        check_folder(place, kind)
        self.place, self.kind = place, kind
        marker = _marker(place)
        self._by_content = set(_files_by_content(place))
        self._before = set(marker.get("files", ())) | self._by_content
        self._old = set(marker.get("old", ()))  # left by the report before the last
        self._written: set[str] = set()
        self._folders: set[Path] = set()  # that are known to be there
        self._uploads: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        if isinstance(place, Path):
            place.mkdir(exist_ok=True)
        self.announce(())

    def announce(self, names: Iterable[str]) -> None:
        """Say which files will be there, before they are: a killed report leaves none unknown."""
        self._mark(self._before | self._written | set(names), self._old)

    def keep(self, name: str) -> bool:
        """Keep a file whose name says what is in it; return whether there is one."""
        if name not in self._by_content:
            return False
        self._written.add(name)
        return True

    def write(self, name: str, data: bytes) -> None:
        assert _OURS.fullmatch(name), name
        self._written.add(name)
        path = _below(self.place, name)
        if isinstance(path, Path):
            self._make_folder(path.parent)
            _replace(path, data)
            return
        if name == FIRST_PAGE:
            self._wait(0)
        self._wait(_ON_THEIR_WAY)
        self._uploads.append(self._threads.submit(_upload, path, data))

    def finish(self) -> None:
        """Remove what neither this report nor a reader of the last one needs."""
        self._wait(0)
        gone = {name for name in self._before - self._written if _OURS.fullmatch(name)}
        now = {name for name in gone if name.endswith(".html") or name in self._old}
        for name in sorted(now):
            with suppress(FileNotFoundError):
                _below(self.place, name).unlink()
        self._mark(self._written | (gone - now), gone - now)
        self._threads.shutdown()

    def _make_folder(self, folder: Path) -> None:
        if folder in self._folders:
            return
        if folder != self.place:
            _check_subfolder(folder)
        folder.mkdir(exist_ok=True)
        self._folders.add(folder)

    def _wait(self, most: int) -> None:
        """Wait until at most so many uploads are under way."""
        while len(self._uploads) > most:
            self._uploads.pop(0).result()

    def _mark(self, names: set[str], old: set[str]) -> None:
        record = {"made_by": self.kind, "files": sorted(names), "old": sorted(old)}
        write_record(self.place / MARKER, _MARKER_VERSION, record)


def _marker(place: AnyPath) -> dict[str, Any]:
    return read_record(place / MARKER, _MARKER_VERSION) or {}


def _files_by_content(place: AnyPath) -> Iterator[str]:
    """The thumbnails and assets that are there, but for empty ones, which a power cut may leave."""
    for folder in ("thumbs", "assets"):
        for path in children(place / folder):
            name = f"{folder}/{path.name}"
            is_empty = isinstance(path, Path) and not path.stat().st_size
            if _BY_CONTENT.fullmatch(name) and not is_empty:
                yield name


def _below(place: AnyPath, name: str) -> AnyPath:
    for part in name.split("/"):
        place = place / part
    return place


def _replace(path: Path, data: bytes) -> None:
    """Let a file be `data`, in one step; the same once more is not written."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _upload(path: StorePath, data: bytes) -> None:
    temporary = scratch() / secrets.token_hex(8)
    try:
        temporary.write_bytes(data)
        path.upload(temporary, _KINDS[path.name[path.name.rindex(".") :]])
    finally:
        temporary.unlink(missing_ok=True)
