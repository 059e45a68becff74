"""What a run leaves for whoever watches over the nights: run.json with the table, and a line in
history.json.

docs/programs.md lists the fields. A run that ends in an error has its line, too: only one that
finds another run at work, or nothing to write to, leaves none.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.manifest import ModelIdentity
from jobs.receipts import Receipt, sha256_file
from pipeline import drift
from pipeline.drift import Drift, measure_drift
from pipeline.errors import TableError, exit_code_of
from pipeline.label.audit import Audit
from pipeline.label.labeller import Labelled, Run
from pipeline.outcome import Outcome, now_text, run_record
from pipeline.settings import Settings
from pipeline.table.class_mix import mix_of_parts, mix_of_table

# Photos that are news to the table; others that are labelled were there before.
_NEWS = ("new", "changed", "retry")


def drift_of(run: Run, n_failed: int, receipts: Collection[Receipt]) -> Drift | None:
    """How the labels of photos that are new to the table, as it is now, differ from all its others;
    None where none of them has a label, or there are no others. `n_failed` rows of the table have
    none, and `receipts` are the job's: what other runs have labelled, and was moved or copied since,
    is no news. Call it before the job's parts are dropped.
    """
    manifest = run.manifest
    is_new = pc.is_in(run.job.pending()["action"], value_set=pa.array(_NEWS)).to_numpy()
    n_rows = manifest.counts["found"] + manifest.counts.get("unseen", 0)
    if not is_new.any() or n_rows == is_new.sum():
        return None
    run_ids = {receipt.run_id for receipt in receipts}
    parts = [run.job.part_path(shard) for shard in range(manifest.n_shards)]
    n_classes = len(run.identity.labels)
    new = mix_of_parts(parts, is_new, manifest.shard_size, n_classes, run_ids)
    if not new.n_rows:  # they failed, or took the labels of others
        return None
    if new.n_rows < drift.LEAST_ROWS:
        # They say nothing: the table need not be read.
        return Drift(new.n_rows, n_rows - n_failed - new.n_rows, new.mean_probability)
    others = mix_of_table(run.job.out, n_classes).without(new)
    return measure_drift(new, others, run.identity.labels)


def write_down(run: Run, outcome: Outcome, labelled: Labelled, audited: Audit) -> None:
    """Write down a run that wrote the table, holding the job: its run.json, and its line in the
    history.
    """
    record = run_record(outcome, run.manifest, labelled.placement, labelled.libraries)
    record["audit"] = audited.to_record()
    if not run.settings.is_dataset:  # a table of many files has those in its index
        record["table_sha256"] = sha256_file(run.job.out)
    run.job.write_run(record)
    add_line(run.job, outcome, run.settings, run.identity, labelled.placement)


def add_line(
    job: Job,
    outcome: Outcome,
    settings: Settings,
    identity: ModelIdentity,
    placement: dict[str, Any] | None = None,
) -> None:
    """Add a run to the history. One that found nothing to do writes nothing else: run.json belongs
    to the run that wrote the table.
    """
    images = outcome.images
    used = placement if placement and images else {}
    job.add_to_history(
        outcome.to_record()
        | {
            "finished_at": now_text(),
            "exit_code": outcome.exit_code(settings.max_errors),
            "message": outcome.last_line(job.out),
            "model": identity.name,
            "images": images,
            "images_per_s": round(images / outcome.seconds, 3) if images else None,
            "device": used.get("device"),
            "precision": used.get("precision"),
        },
        [list(mount) for mount in outcome.mounts],
    )


def add_report_error(job: Job, outcome: Outcome, seconds: float, reason: str) -> None:
    """Note, after the line of a run that is well, that the report of its table could not be made."""
    # What the run says of itself must not be lost with this note: the disk may be full.
    with suppress(Exception):
        job.add_to_history(
            {
                "run_id": outcome.run_id,
                "finished_at": now_text(),
                "seconds": round(seconds, 3),
                "exit_code": TableError.exit_code,
                "message": f"the table is written, its report is not: {reason}",
            }
        )


@contextmanager
def errors_in_history(job: Job, run_id: str) -> Iterator[None]:
    """Note an error that ends a run in the history of its job, and raise it on."""
    started = time.perf_counter()
    try:
        yield
    except BaseException as error:
        # Nothing that fails here may hide what went wrong.
        with suppress(Exception):
            if job.folder.is_dir() and not job.is_newer:
                with job.held():
                    job.add_to_history(
                        {
                            "run_id": run_id,
                            "finished_at": now_text(),
                            "seconds": round(time.perf_counter() - started, 3),
                            "exit_code": exit_code_of(error),
                            "message": str(error) or type(error).__name__,
                        }
                    )
        raise
