"""Index: what a table of many files is made of, and the switch from one state of it to the next.

    labels/part-00000.parquet ...     the rows, each file its own range of keys
    .labels.job/table.json            the index: the files in key order, and what the table says of itself
    .labels.job/files/                files to come

New files are made aside. Then the index is written, which is the moment of the switch; then the
files are moved to their names, one by one, and those that the index does not name are removed. What
a crash leaves undone of that, `settle` does. Readers see each file as it was or as it is, and each
key in one file, but for the moment in which a file that has grown too large becomes two.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

from jobs.storage.atomic import children, move, remove, remove_files
from jobs.storage.object_store import AnyPath

from .receipts import sha256_file
from .records import read_record, write_record

INDEX_VERSION = 1
_NAME = re.compile(r"part-(\d+)\.parquet")


@dataclass(frozen=True)
class IndexedFile:
    name: str
    rows: int
    errors: dict[str, int]  # failed rows by code
    sha256: str


@dataclass(frozen=True)
class Index:
    """`record` and `classes` are what a table of one file has in its metadata."""

    record: dict[str, Any]
    classes: list[dict[str, Any]]
    files: list[IndexedFile]

    def write(self, path: AnyPath) -> None:
        write_record(path, INDEX_VERSION, asdict(self))

    @classmethod
    def read(cls, path: AnyPath) -> "Index | None":
        """Read an index; None when it is missing, damaged, of another version or names what is no
        file of ours.
        """
        values = read_record(path, INDEX_VERSION)
        if values is None:
            return None
        try:
            files = [IndexedFile(**file) for file in values["files"]]
            index = cls(values["record"], values["classes"], files)
        except (KeyError, TypeError):
            return None
        return index if all(number_of(file.name) >= 0 for file in files) else None

    def new_names(self) -> "Names":
        return Names(max((number_of(file.name) for file in self.files), default=-1) + 1)


class Names:
    """Names that no file has had in this index."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __call__(self) -> str:
        self.next += 1
        return f"part-{self.next - 1:05}.parquet"


def number_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else -1


def settle(index: Index | None, staged: AnyPath, out: AnyPath, are_proven: bool = False) -> None:
    """Move the staged files of an index to their names, and remove what is not of it.

    Staged files that are not the index's are left from a merge that never ended, and removed;
    `are_proven` spares the look.
    """
    wanted = {file.name: file for file in index.files} if index else {}
    for path in children(staged):
        if path.name in wanted and (are_proven or sha256_file(path) == wanted[path.name].sha256):
            move(path, out / path.name)
    remove_files(staged)
    if index is not None:
        for path in children(out):
            if number_of(path.name) >= 0 and path.name not in wanted:
                remove(path)
