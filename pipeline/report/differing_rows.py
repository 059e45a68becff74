"""The rows that differ between two tables, as a Parquet file of their own (`diff --out`)."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.atomic import atomic_output
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError, UsageError
from pipeline.outcome import now_text

from .tally import DIFFERING

_MARK = b"label_images_diff"  # of a file that may be replaced


@contextmanager
def differing_rows(
    out: AnyPath | None, old: AnyPath, new: AnyPath
) -> Iterator[Callable[[pa.Table], None] | None]:
    """Yield what takes the rows; they appear at `out` when all of them are there. None without one.

    Raises TableError for a file that no `diff` wrote, UsageError where there is no folder.
    """
    if out is None:
        yield None
        return
    _check(out)
    with atomic_output(out) as temporary:
        schema = DIFFERING.with_metadata(
            {_MARK: json.dumps({"old": str(old), "new": str(new), "created_at": now_text()})}
        )
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            yield writer.write_table


def _check(out: AnyPath) -> None:
    if isinstance(out, Path) and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file, such as {out}/diff.parquet")
    if not out.exists():
        return
    try:
        is_ours = _MARK in (pq.read_schema(as_arrow(out)).metadata or {})
    except (pa.ArrowException, OSError):
        is_ours = False
    if not is_ours:
        raise TableError(
            f"{out} holds something that `label-images diff` did not write; choose another --out"
        )
