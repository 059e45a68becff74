"""Repair: a damaged table becomes the table of what can still be proven; the next run labels the
rest.

Proven are the row groups whose pages have the right checksums and whose rows pass every check of
verify.py, and the parts that receipts of an unfinished job prove, where that has the same
fingerprint.
"""

import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.inspect import mend
from jobs.inspect import problems as problems_of_job
from jobs.job import Job
from jobs.keys import sort_and_drop_repeated
from jobs.receipts import UNKNOWN, Provenance
from jobs.storage.arrow import read_parquet
from jobs.storage.object_store import AnyPath
from pipeline.errors import TableError
from pipeline.outcome import now_text

from .merge import Merge, Parts, RowGroup, write_merged
from .partitioned import write_dataset
from .record import TableRecord
from .table import read_classes, read_index
from .verify import check_groups, verify_table

_PART_COLUMNS = ["root", "path", "status"]
_KEYS = pa.schema(
    [
        ("root", pa.string()),
        ("path", pa.string()),
        ("is_failed", pa.bool_()),
        ("number", pa.int64()),
    ]
)


def repair(path: AnyPath) -> str:
    """Make table and job folder sound again, and say what was done.

    Raises TableError where nothing of the table can be proven; JobLocked while a run is at work.
    """
    if not path.exists():
        raise TableError(
            f"there is no table at {path}, and so nothing to repair; label again, which goes on "
            "with whatever job is unfinished"
        )
    job = Job(path)
    with job.held():
        done = []
        record, problems = verify_table(path)
        if problems:
            if record is None:
                raise TableError(f"there is no table of label-images at {path}")
            done.append(_rewrite(path, job, record))
        for problem in list(problems_of_job(job)):
            done.append(f"dropped: {problem}")
        mend(job)
    return "\n".join(done) or f"{path}: nothing to repair"


def _rewrite(path: AnyPath, job: Job, record: TableRecord) -> str:
    """Of the rows that are proven the keys alone are ever in memory together: the rows are read once
    more, a row group at a time, as they are written.
    """
    classes, proven = read_classes(path), _Proven()
    parts, makers = _proven_parts(job, record)
    for part, keys in parts:
        proven.add(part, keys)
    n_parts = proven.n_rows
    for group in check_groups(path, record):
        if group.at is not None and group.rows is not None and not group.problems:
            proven.add(group.at, group.rows)
    numbers = proven.in_order(n_parts)
    n_before, n_kept = record.counts["rows"], proven.n_rows - n_parts
    made_by = record.made_by + [maker for maker in makers if maker not in record.made_by]
    new = replace(record, plan_id=uuid.uuid4().hex, repaired_at=now_text(), made_by=made_by)
    rows = Parts.of_sizes(record.product, proven.places, proven.sizes)
    merge = Merge(np.array([], np.int64), np.arange(len(numbers)), rows, numbers)
    if read_index(path) is None:
        write_merged(path, None, merge, new, classes)
    else:
        write_dataset(job, None, merge, new, classes)
    job.finish(new.plan_id)
    return (
        f"{path}: kept {n_kept:,} of {n_before:,} rows"
        + (f", and {n_parts:,} of an unfinished job" if n_parts else "")
        + "; run label-images again to label the rest"
    )


class _Proven:
    """Where the rows are that are kept, how many are in each place, and their keys. A row's number
    counts those of the places before its own.
    """

    def __init__(self) -> None:
        self.places, self.sizes = list[AnyPath | RowGroup](), list[int]()
        self.keys = [_KEYS.empty_table()]
        self.n_rows = 0

    def add(self, place: AnyPath | RowGroup, rows: pa.Table) -> None:
        is_failed = pa.array(np.zeros(len(rows), np.bool_))
        if "status" in rows.schema.names:
            is_failed = pc.not_equal(rows["status"], "ok")
        number = pa.array(np.arange(self.n_rows, self.n_rows + len(rows)))
        columns = [rows["root"], rows["path"], is_failed, number]
        self.places.append(place)
        self.sizes.append(len(rows))
        self.keys.append(pa.table(columns, schema=_KEYS))
        self.n_rows += len(rows)

    def in_order(self, n_parts: int) -> np.ndarray:
        """The numbers of the rows in the order of their keys, one of each; the first `n_parts` are of
        parts.

        Of two with one key it is the newer, that of a part, but a label before a failure.
        """
        keys = pa.concat_tables(self.keys)
        is_part = pc.less(keys["number"], n_parts)
        newer = keys.filter(pc.and_(is_part, pc.invert(keys["is_failed"])))
        failed = keys.filter(pc.and_(is_part, keys["is_failed"]))
        keys = pa.concat_tables([newer, keys.filter(pc.invert(is_part)), failed])
        return sort_and_drop_repeated(keys)["number"].to_numpy()


def _proven_parts(
    job: Job, record: TableRecord
) -> tuple[list[tuple[AnyPath, pa.Table]], list[Provenance]]:
    """The finished shards of an unfinished job of the same fingerprint, with the keys and the status
    of their rows, and what made them.
    """
    manifest = job.manifest
    if manifest is None or not job.has_plan or manifest.fingerprint.digest != record.fingerprint:
        return [], []
    parts, makers = list[tuple[AnyPath, pa.Table]](), list[Provenance]()
    for shard, receipt in job.receipts(manifest).items():
        part = job.part_path(shard)
        keys = read_parquet(part, _PART_COLUMNS)
        parts.append((part, keys))
        maker = receipt.made_by or UNKNOWN
        makers += [maker] if maker not in makers else []
    return parts, makers
