"""Atomic, durable writes: the only way this project puts state on disk.

A file appears whole under its name or not at all, also after a power cut: write a temporary file
beside it, fsync it, rename it, fsync the folder. POSIX promises the rename to be atomic for
readers; that it survives a power cut holds once the folder is synced, on file systems that honour
fsync (a network share may not). In an object store a PUT has the same promise, and there is no
rename (object_store.py).
"""

import glob
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .object_store import AnyPath, StorePath, scratch


@contextmanager
def atomic_output(path: AnyPath, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on failure it is removed.

    `check` may object right before that: to put a large file into a store takes minutes.

    Each writer has a temporary file of its own: a task on a Ray node may go on for some seconds
    after its driver was killed, when the run that goes on writes the same path already. What killed
    processes left is swept by the next one that holds the job (`leftovers`).
    """
    if isinstance(path, StorePath):
        with _uploaded(path, check) as temporary:
            yield temporary
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        fsync(
            temporary
        )  # before the rename, or a power cut could leave the new name on empty content
        check()
        os.replace(temporary, path)
        fsync(path.parent)  # the rename itself lives in the folder
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk, say: Arrow does not tell where
        raise


def leftovers(path: Path) -> list[Path]:
    """The temporary files that writers of a path left, also those of versions with one name for it."""
    name = glob.escape(path.name)
    return [
        *path.parent.glob(f"{name}.{'[0-9a-f]' * 8}.tmp"),
        *path.parent.glob(f"{name}.tmp"),
    ]


@contextmanager
def _uploaded(path: StorePath, check: Callable[[], None]) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=scratch(), prefix=path.name)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        path.upload(temporary, check=check)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: AnyPath, data: bytes) -> None:
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: AnyPath, record: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def read_json(path: AnyPath) -> dict[str, Any] | None:
    """Read a JSON object; None when the file is missing, damaged or holds something else.

    State that cannot be read is state that does not exist: it is computed again.
    """
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def make_folder(path: AnyPath) -> None:
    """Create one folder, durably; it may exist already."""
    if isinstance(path, Path) and not path.is_dir():
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def move(path: AnyPath, to: AnyPath) -> None:
    """Let a file have another name, durably; readers of that see the file before, or this one."""
    if isinstance(path, StorePath):
        assert isinstance(to, StorePath)
        path.copy_to(to)
        path.unlink()
    else:
        os.replace(path, str(to))
        fsync(to.parent)


def children(folder: AnyPath) -> list[Any]:
    """The paths in a folder; none where it does not exist."""
    return [*folder.iterdir()] if folder.is_dir() else []


def remove(path: AnyPath) -> None:
    """Remove a file, durably; it may be gone already."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    fsync(path.parent)


def remove_files(folder: AnyPath) -> None:
    """Remove the files of a folder of ours, and the folder; it may be gone already."""
    if folder.is_symlink() or not folder.is_dir():
        return  # never follow a link out of the job folder
    if isinstance(folder, Path):
        for path in folder.iterdir():
            path.unlink()
    folder.rmdir()
    fsync(folder.parent)


def fsync(path: AnyPath) -> None:
    """Flush a file or a folder to the disk; a store has done so when it answers."""
    if isinstance(path, StorePath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
