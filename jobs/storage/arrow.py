"""Arrow files: how a plan lies on disk, to be mapped into memory by all who work on it. And how the
parts of its shards are read.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import JobError

from .atomic import atomic_output
from .object_store import AnyPath, as_arrow


def write_arrow(path: AnyPath, table: pa.Table) -> None:
    with atomic_output(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)


def map_arrow(path: Path) -> pa.Table:
    """Memory-map a plan's file. Raises JobError where it is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise JobError(f"{path} is damaged ({error}); run again with --restart") from error


def read_parquet(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some columns of it in the order given.

    Raises an ArrowException or an OSError, as pyarrow.parquet.read_table does; that would do as well,
    but takes another while to import pyarrow.dataset.
    """
    with pq.ParquetFile(as_arrow(path), pre_buffer=True) as file:
        if columns is None:
            return file.read()
        names = list(columns)
        if missing := set(names) - set(file.schema_arrow.names):
            raise pa.ArrowInvalid(f"{path} has no column {min(missing)}")
        return file.read(columns=names).select(names)


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, where it is installed: for a process that has none of it.

    pyarrow does so at the first value it is handed, to see whether that is pandas'; it is a third of
    the time of a night without work. What asks for pandas afterwards gets it, pyarrow's `to_pandas`
    too.
    """
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.scalar(0)
        finally:
            sys.meta_path.remove(_NoPandas)


class _NoPandas(MetaPathFinder):
    """Finds no pandas, wherever it lies."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is spared", name=fullname)
