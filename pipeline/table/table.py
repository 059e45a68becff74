"""A table as it is: one Parquet file, or a folder of them with an index in its job folder."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.job import Job
from jobs.storage.object_store import AnyPath, StorePath, at
from jobs.table_index import Index
from pipeline.errors import TableError

from . import record as one_file
from .product import Product
from .record import TableRecord

if TYPE_CHECKING:  # its import takes a while, and a run does without
    import pyarrow.dataset as pads


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
            f"({Job(path).index_path.name} is missing in {Job(path).folder.name} beside it); name "
            f"a file in it, such as {path}/labels.parquet, or an empty folder"
        )
    return index


def read_record(path: AnyPath, product: Product | None = None) -> TableRecord | None:
    """Read what a table says of itself; None when there is none.

    Raises TableError for what is not ours, or is another `product` than the one asked for.
    """
    index = read_index(path)
    if index is not None:
        record: TableRecord | None = TableRecord.from_json(index.record, path)
    else:
        record = None if path.is_dir() else one_file.read_record(path)
    if record and product and record.product is not product:
        raise TableError(
            f"{path} holds {record.product_name}, and not {product.name}; name another place"
        )
    return record


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
    index = read_index(path)
    if index is None:
        return one_file.read_known(path, in_archives)
    tables = []
    for file in index.files:
        rows = one_file.read_known(path / file.name, in_archives, path)
        if not in_archives and len(rows) != file.rows:
            # Which rows are carried over is counted by the index.
            found = ValueError(f"{len(rows):,} rows instead of {file.rows:,}")
            raise one_file.damaged(path / file.name, found, path)
        tables.append(rows)
    return pa.concat_tables(tables)


def read_hashes(path: AnyPath, root: str, paths: Sequence[str]) -> dict[str, str | None]:
    """Read the content_hash of some images below a root, by path. Raises TableError."""
    import pyarrow.dataset as pads

    is_asked_for = (pads.field("root") == root) & pads.field("path").isin(list(paths))
    try:
        rows = Table(path).scan(["path", "content_hash"], is_asked_for)
    except (pa.ArrowException, OSError) as error:
        raise one_file.damaged(path, error) from error
    return dict(zip(*rows.to_pydict().values(), strict=True))


class Table:
    """A table of labels or of embeddings, for programs: `from pipeline import Table`.

    `path` is a path or a URI, of one Parquet file or of a folder of them. Nothing is read before it
    is asked for, and nothing is kept. Raises TableError for what is not a table of ours.
    """

    def __init__(self, path: "str | os.PathLike[str] | AnyPath") -> None:
        self.path = path if isinstance(path, StorePath) else at(path)

    @property
    def record(self) -> TableRecord:
        """What the table says of itself: model, counts, what made its rows."""
        record = read_record(self.path)
        if record is None:
            raise TableError(f"there is no table at {self.path}")
        return record

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The classes its labels are from, in class order: class_id, label, and id where known."""
        return read_classes(self.path)

    def dataset(self) -> "pads.Dataset":
        """The rows as a pyarrow dataset, which DuckDB and Polars read from, too."""
        import pyarrow.dataset as pads

        if not self.path.exists():
            raise TableError(f"there is no table at {self.path}")
        files = files_of(self.path)
        if not isinstance(self.path, StorePath):
            return pads.dataset([str(file) for file in files], format="parquet", partitioning=None)
        keys = [file.key for file in files if isinstance(file, StorePath)]
        return pads.dataset(keys, filesystem=self.path.fs, format="parquet", partitioning=None)

    def scan(
        self, columns: Sequence[str] | None = None, filter: "pads.Expression | None" = None
    ) -> pa.Table:
        """The rows, in the order of root and path: some columns, and those a filter lets through.

        `pyarrow.compute.field("probability") > 0.5` is a filter.
        """
        return self.dataset().to_table(
            columns=list(columns) if columns is not None else None, filter=filter
        )
