"""What lies below a folder or a bucket, as a stream: names and stamps, nothing opened."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pyarrow.fs import FileInfo, FileType

from jobs.storage.object_store import REQUESTS_AT_ONCE, StorePath
from pipeline.path_names import display

Unlisted = dict[tuple[str, str], str]  # (root, folder) -> why it could not be read


def walk(
    root: str,
    enter: Callable[[str], bool],
    unlisted: Unlisted,
    linked: Callable[[str], None] = lambda path: None,
    mounted: Callable[[str], None] = lambda path: None,
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield the files below a folder by their path from it, depth first.

    `enter` says whether to go into a folder. Links are followed, but not to a folder that they lie
    in; `linked` is told of those to folders, `mounted` of folders on another device than the one
    above them.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]], int | None]] = [("", frozenset(), None)]
    while pending:
        folder, above, device = pending.pop()
        full = os.path.join(root, folder) if folder else root
        try:
            info = os.stat(full)
            identity = (info.st_dev, info.st_ino)
            if folder and info.st_dev != device:
                mounted(folder)
            if identity in above:
                continue  # a link back to a folder we are inside of
            with os.scandir(full) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if not _is_folder(entry):
                        yield path, entry
                    elif enter(path):
                        pending.append((path, above | {identity}, info.st_dev))
                        if entry.is_symlink():
                            linked(path)
        except OSError as error:
            unlisted[display(root), display(folder)] = error.strerror or str(error)


def is_mount(place: str | bytes) -> bool:
    """Whether a folder is on another device than the one above it. Raises OSError."""
    return os.stat(place).st_dev != os.stat(os.path.dirname(place)).st_dev


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or in a circle
        return False


def walk_store(
    root: StorePath, enter: Callable[[str], bool], unlisted: Unlisted
) -> Iterator[tuple[str, FileInfo]]:
    """Yield the files below a place in a store by their path from it, as their folders get listed,
    many at once.
    """
    if root.fs.type_name == "gcs":
        yield from _walk_at_once(root, enter, unlisted)
        return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="list") as threads:
        pending: dict[Future[list[FileInfo]], str] = {threads.submit(root.entries): ""}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for listed in done:
                folder = pending.pop(listed)
                try:
                    entries = listed.result()
                except OSError as error:
                    unlisted[display(str(root)), display(folder)] = error.strerror or str(error)
                    continue
                for entry in entries:
                    path = f"{folder}/{entry.base_name}" if folder else entry.base_name
                    if entry.type != FileType.Directory:
                        yield path, entry
                    elif enter(path):
                        pending[threads.submit((root / path).entries)] = path


def _walk_at_once(
    root: StorePath, enter: Callable[[str], bool], unlisted: Unlisted
) -> Iterator[tuple[str, FileInfo]]:
    """As walk_store, from one listing of all: pyarrow.fs tells no folders of Google's store, but
    those that an object of their name marks.
    """
    entered = {"": True}

    def is_entered(folder: str) -> bool:
        if folder not in entered:
            entered[folder] = is_entered(folder.rpartition("/")[0]) and enter(folder)
        return entered[folder]

    try:
        entries = root.entries(recursive=True)
    except OSError as error:
        unlisted[display(str(root)), ""] = error.strerror or str(error)
        return
    start = len(root.key) + 1
    for entry in entries:
        path = entry.path[start:]
        if entry.type != FileType.Directory and is_entered(path.rpartition("/")[0]):
            yield path, entry
