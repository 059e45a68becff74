"""Arrow files: how a plan lies on disk, to be mapped into memory by all who work on it."""

from pathlib import Path

import pyarrow as pa

from jobs.errors import JobError

from .atomic import atomic_output
from .object_store import AnyPath


def write_arrow(path: AnyPath, table: pa.Table) -> None:
    with atomic_output(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)


def map_arrow(path: Path) -> pa.Table:
    """Memory-map a plan's file. Raises JobError where it is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise JobError(f"{path} is damaged ({error}); run again with --restart") from error
