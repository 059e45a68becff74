"""The run: plan -> label -> audit -> merge.

What is to be done is decided in plan/. To label is load -> predict -> write -> commit
(label/local.py), here or on a cluster. The audit labels some rows once more, and merging makes the
table.
"""

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime

from jobs.errors import JobLocked
from jobs.job import Job
from pipeline.find.file_list import read_list
from pipeline.label.audit import audit
from pipeline.label.label_job import LabelledJob, label_job
from pipeline.label.labeller import Labeller, Run
from pipeline.label.ready import ready_labeller

from .console import Console
from .failed_images import mounts_of
from .history import add_line, errors_in_history, write_down
from .merging import merge
from .outcome import Outcome
from .plan.choice import Chosen, choose
from .plan.planned import plan_job, read_table
from .preflight import check_paths
from .settings import Settings


def run(settings: Settings, console: Console) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos, and return what was done."""
    deadline = math.inf if settings.max_runtime is None else time.monotonic() + settings.max_runtime
    job, run_id = Job(settings.table), new_run_id()
    with errors_in_history(job, run_id):
        # What cannot work is refused before anything is made beside the table.
        settings = check_paths(settings)
        listed = read_list(settings.files_from)
        chosen = choose(job, settings, read_table(settings))
        chosen.announce(console)
        with ready_labeller(chosen.settings, chosen.explained) as labeller:
            console.info("model", labeller.identity.describe())
            for note in labeller.identity.notes:
                console.info("model_note", note)
            # Closed before another run may hold the job: tasks of a cluster write to it.
            with _held(job, settings, console) as beside, closing(labeller):
                return _run(job, beside, chosen, listed, labeller, console, run_id, deadline)


def _run(
    job: Job,
    beside: dict[str, Job],
    chosen: Chosen,
    listed: bytes | None,
    labeller: Labeller,
    console: Console,
    run_id: str,
    deadline: float,
) -> Outcome:
    """Plan, label, audit and merge, holding the job."""
    settings, identity, started = chosen.settings, labeller.identity, time.perf_counter()
    planned = plan_job(job, chosen, listed, labeller, console)
    if planned.manifest is None:
        seconds = time.perf_counter() - started
        outcome = Outcome(
            run_id,
            planned.counts,
            planned.errors,
            seconds=seconds,
            changed=False,
            mounts=planned.mounts,
        )
        add_line(job, outcome, settings, identity)
        return outcome
    this = Run(job, planned.manifest, identity, settings, console, run_id, deadline, beside)
    done = label_job(this, labeller, planned.shards)
    audited = audit(this, labeller)
    errors = merge(this, labeller, done.receipts.values())
    outcome = _outcome(this, done, errors, time.perf_counter() - started)
    write_down(this, outcome, done.labelled, audited)
    job.finish(this.manifest.plan_id)
    return outcome


@contextmanager
def _held(job: Job, settings: Settings, console: Console) -> Iterator[dict[str, Job]]:
    """Hold the job, and the places of other products: no other run writes to them meanwhile. Yield
    those, by the product's name.
    """
    beside = {name: Job(place) for name, place in settings.beside.items()}
    with ExitStack() as held:
        for name, each in {"": job, **beside}.items():
            try:
                is_alone = held.enter_context(each.held())
            except JobLocked as error:
                if not name:
                    raise
                text = str(error).replace("this table", f"the {name} in {each.out}")
                raise JobLocked(text) from error
            if not is_alone:
                console.warn(
                    "no_lock",
                    f"nothing keeps another run off {each.out}: this store, or this "
                    "installation, has no conditional writes (for S3 install "
                    "label-images[s3]); see to it that no two run at once",
                )
        yield beside


def _outcome(run: Run, done: LabelledJob, errors: dict[str, int], seconds: float) -> Outcome:
    """What a run did that wrote the table, whose failed rows `errors` counts by code."""
    manifest, stages = run.manifest, done.labelled.stages
    return Outcome(
        run_id=run.id,
        counts=manifest.counts,
        errors=errors,
        labelled=manifest.n_images - done.failures.total,
        failures=done.failures,
        seconds=seconds,
        images=stages.images,
        waited=stages.wait_s / stages.at_once / max(seconds, 1e-9),
        stages=stages.to_record(),
        rates=stages.rates(done.labelled.placement["workers"]),
        mounts=mounts_of(manifest),
    )


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
