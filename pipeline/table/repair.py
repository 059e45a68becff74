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
from jobs.plan import sort_and_drop_repeated
from jobs.receipts import UNKNOWN, Provenance
from jobs.storage.arrow import read_parquet
from jobs.storage.object_store import AnyPath
from pipeline.errors import TableError
from pipeline.outcome import now_text

from .merge import Merge, Parts, write_merged
from .partitioned import write_dataset
from .record import TableRecord
from .table import read_classes, read_index
from .verify import check_groups, verify_table


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
    classes = read_classes(path)
    good = [
        rows
        for _, rows, problems in check_groups(path, record)
        if rows is not None and not problems
    ]
    parts, makers = _proven_parts(job, record)
    n_before, n_parts = record.counts["rows"], sum(map(len, parts))
    is_ok = [pc.equal(part["status"], "ok") for part in parts]
    labelled = [part.filter(ok) for part, ok in zip(parts, is_ok, strict=True)]
    failed = [part.filter(pc.invert(ok)) for part, ok in zip(parts, is_ok, strict=True)]
    # Of two rows with one key the first is kept: the newer, but a label before a failure.
    all_rows = pa.concat_tables([*labelled, *good, *failed, record.product.schema.empty_table()])
    rows = sort_and_drop_repeated(all_rows)
    made_by = record.made_by + [maker for maker in makers if maker not in record.made_by]
    new = replace(record, plan_id=uuid.uuid4().hex, repaired_at=now_text(), made_by=made_by)
    merge = Merge(
        np.array([], np.int64), np.arange(len(rows)), Parts(record.product, [rows], len(rows))
    )
    if read_index(path) is None:
        write_merged(path, None, merge, new, classes)
    else:
        write_dataset(job, None, merge, new, classes)
    job.finish(new.plan_id)
    return (
        f"{path}: kept {sum(map(len, good)):,} of {n_before:,} rows"
        + (f", and {n_parts:,} of an unfinished job" if n_parts else "")
        + "; run label-images again to label the rest"
    )


def _proven_parts(job: Job, record: TableRecord) -> tuple[list[pa.Table], list[Provenance]]:
    """The finished shards of an unfinished job of the same fingerprint, and what made them."""
    manifest = job.manifest
    if manifest is None or not job.has_plan or manifest.fingerprint.digest != record.fingerprint:
        return [], []
    parts, makers = [], list[Provenance]()
    for shard, receipt in job.receipts(manifest).items():
        part = read_parquet(job.part_path(shard))
        parts.append(record.product.conform(part))
        maker = receipt.made_by or UNKNOWN
        makers += [maker] if maker not in makers else []
    return parts, makers
