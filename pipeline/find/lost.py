"""What a folder or a list names and the disk does not give: links that lead nowhere, and files that
cannot be looked up.

Whether a label is at stake depends on the rows that a table has (unseen.py); a new image among them
gets a row that says why it failed. Kept in Arrow, since a whole disk of them may be away.
"""

import errno

import pyarrow as pa

from pipeline.path_names import display

LOST = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("is_image", pa.bool_(), nullable=False),  # by its name; else it may be a folder
        pa.field("is_there", pa.bool_(), nullable=False),  # but cannot be looked up
        pa.field("is_listed", pa.bool_(), nullable=False),  # by --files-from
    ]
)

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)

_CHUNK_ROWS = 65_536


def is_not_there(error: OSError) -> bool:
    """Whether an error says that there is no such file, and not that it cannot be looked up."""
    return error.errno in _NOT_THERE


class Lost:
    """Collects what is lost, as rows of LOST."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, bool, bool, bool]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(
        self, root: str, path: str, error: OSError, is_image: bool = True, is_listed: bool = False
    ) -> None:
        is_there = not is_not_there(error)
        why = error.strerror or str(error) if is_there else "their links lead nowhere"
        self._rows.append((root, display(path), why, is_image, is_there, is_listed))
        if len(self._rows) == _CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(values, kind) for values, kind in zip(columns, LOST.types, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=LOST))
        self._rows = []

    def to_table(self) -> pa.Table:
        if self._rows:
            self._flush()
        return pa.Table.from_batches(self._batches, LOST)
