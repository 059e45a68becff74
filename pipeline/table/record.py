"""What a table says of itself: the record in its metadata, and the names of its classes.

JSON under `label_images` (what made the table) and `label_images_classes`.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.plan import KNOWN
from jobs.records import canonical_sha256
from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError
from pipeline.table.schema import SCHEMA

TABLE_VERSION = 1


# What the readers of a record count on, beside its version.
_RECORD = {
    "plan_id": str, "created_at": str, "run_id": str, "tool_version": str, "roots": list,
    "counts": dict,
    "model": str, "fingerprint": str, "fingerprint_fields": dict, "precision": str, "device": str,
}  # fmt: skip


_COUNTS = {"rows": int, "ok": int, "errors": dict}


def read_record(path: AnyPath) -> dict[str, Any] | None:
    """Read what a table says of itself; None when there is no file.

    Raises TableError for a file that this tool did not write, or a version of it that differs.
    """
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(as_arrow(path)) as file:
            metadata, schema = file.metadata.metadata or {}, file.schema_arrow
            record = json.loads(metadata[b"label_images"])
            version = record["version"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path} was not written by label-images, or is damaged ({type(error).__name__}); "
            f"choose another --out, "
            "or replace it with --overwrite"
        ) from error
    if version != TABLE_VERSION or not schema.equals(SCHEMA):
        raise TableError(
            f"{path} has other columns than this version of label-images writes (table version "
            f"{version}, this is "
            f"{TABLE_VERSION}); choose another --out, or replace it with --overwrite"
        )
    if not _is_whole(record):
        raise TableError(
            f"{path} is damaged: what it says of itself is not as it was written; choose another "
            f"--out, or replace it "
            "with --overwrite"
        )
    return record


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record says all that it should: damage may have left it JSON, with a key that
    nobody knows.
    """
    return (
        all(isinstance(record.get(name), kind) for name, kind in _RECORD.items())
        and all(isinstance(record["counts"].get(name), kind) for name, kind in _COUNTS.items())
        and canonical_sha256(record["fingerprint_fields"]) == record["fingerprint"]
    )


def read_classes(path: AnyPath) -> list[dict[str, Any]]:
    """Read the classes that a table's labels are from. Raises TableError."""
    try:
        classes = json.loads(pq.read_metadata(as_arrow(path)).metadata[b"label_images_classes"])
        assert all(isinstance(entry["label"], str) for entry in classes)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise TableError(
            f"{path} does not say what its classes are ({error}); label again with --overwrite"
        ) from error
    return list(classes)


def read_known(path: AnyPath, in_archives: bool = False, table: AnyPath | None = None) -> pa.Table:
    """Read the columns of a table that a plan is made from, or only the rows of images
    `in_archives`.

    Raises TableError where it is damaged.
    """
    encoded = ["root", "status", "error_code", "fingerprint"]
    try:
        with pq.ParquetFile(
            as_arrow(path), read_dictionary=encoded, page_checksum_verification=True
        ) as file:
            if not in_archives:
                return file.read(columns=KNOWN.names)
            batches = file.iter_batches(columns=KNOWN.names)
            rows = [
                pa.table(batch).filter(pc.match_substring(batch["path"], ".tar", ignore_case=True))
                for batch in batches
            ]
            return pa.concat_tables(
                [KNOWN.empty_table(), *(each.select(KNOWN.names).cast(KNOWN) for each in rows)]
            )
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error, table) from error


def damaged(path: AnyPath, error: Exception, table: AnyPath | None = None) -> TableError:
    """What to say of a file whose pages cannot be read, or are not as they were written.

    `table` is the folder, of a table of many files.
    """
    return TableError(
        f"{path} is damaged ({error}); keep what can still be proven with `label-images verify "
        f"{table or path} --repair`, or label all again with --restart"
    )
