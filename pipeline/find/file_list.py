"""The list of files that --files-from names."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError


def read_list(files_from: str | None) -> bytes | None:
    """Read the list of files that --files-from names ("-" is stdin); None where it was not given."""
    if files_from is None:
        return None
    try:
        return sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as error:
        raise UsageError(
            f"the list of files {files_from} cannot be read: {error.strerror or error}"
        ) from error


def what_is_missing(listed: bytes | None) -> str | None:
    """Say what is wrong with a list of which no file is there, as when `find` failed or a disk is
    not mounted.
    """
    if listed is None:
        return None
    n = 0
    for name in split_list(listed):
        if os.path.lexists(os.path.join(*split_listed(name))):
            return None
        n += 1
    return (
        f"of the {n:,} files that the list names none is there"
        if n
        else "the list of files is empty"
    )


def split_list(listed: bytes) -> Iterator[str]:
    """Yield the names of a list: one a line, or NUL-terminated where it holds a NUL (find -print0)."""
    names = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
    return (os.fsdecode(name) for name in names if name.strip())


def split_listed(name: str) -> tuple[str, str]:
    """Return root and path of a listed file: below the working folder, or else below /."""
    here = os.getcwd()
    absolute = os.path.normpath(os.path.join(here, name))
    if not os.path.isabs(name) and absolute.startswith(here.rstrip("/") + "/"):
        return here, absolute[len(here.rstrip("/")) + 1 :]
    return "/", absolute.lstrip("/")
