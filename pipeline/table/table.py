"""A table as it is: one Parquet file, or a folder of them with an index in its job folder."""

from typing import Any

import pyarrow as pa

from jobs.job import Job
from jobs.storage.object_store import AnyPath
from jobs.table_index import Index
from pipeline.errors import TableError

from . import record as one_file
from .record import TableRecord


def read_index(path: AnyPath) -> Index | None:
    """The index of a table of many files; None for one of one file, or none at all.

    Raises TableError for a folder of which nothing is known.
    """
    if not path.is_dir():
        return None
    index = Job(path).index()
    if index is None and any(True for _ in path.iterdir()):
        raise TableError(
            f"{path} is a folder with files that label-images knows nothing of "
            f"({Job(path).index_path.name} is missing "
            f"in {Job(path).folder.name} beside it); name a file in it, such as "
            f"{path}/labels.parquet, or an empty "
            "folder"
        )
    return index


def read_record(path: AnyPath) -> TableRecord | None:
    """Read what a table says of itself; None when there is none.

    Raises TableError for what is not ours.
    """
    index = read_index(path)
    if index is not None:
        return TableRecord.from_json(index.record, path)
    return None if path.is_dir() else one_file.read_record(path)


def read_classes(path: AnyPath) -> list[dict[str, Any]]:
    """Read the classes that a table's labels are from. Raises TableError."""
    index = read_index(path)
    return one_file.read_classes(path) if index is None else index.classes


def files_of(path: AnyPath) -> list[AnyPath]:
    """The files of a table, in key order."""
    index = read_index(path)
    return [path] if index is None else [path / file.name for file in index.files]


def read_known(path: AnyPath, in_archives: bool = False) -> pa.Table:
    """Read the columns of a table that a plan is made from, or only the rows of images
    `in_archives`.

    Raises TableError where it is damaged.
    """
    return pa.concat_tables(one_file.read_known(file, in_archives, path) for file in files_of(path))
