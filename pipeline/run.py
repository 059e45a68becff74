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
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from jobs.errors import JobError, JobLocked
from jobs.job import Job
from pipeline.find.file_list import read_list
from pipeline.find.scan import root_of
from pipeline.label.audit import audit
from pipeline.label.label_job import LabelledJob, label_job
from pipeline.label.labeller import Labeller, Run
from pipeline.label.ready import ready_labeller
from pipeline.report.write import check_place, write_report

from .console import Console
from .drift import Drift
from .errors import LabelImagesError, TableError
from .failed_images import mounts_of
from .finish.history import add_line, add_report_error, drift_of, errors_in_history, write_down
from .finish.merging import merge
from .finish.metrics import with_metrics
from .outcome import Outcome
from .path_names import display
from .plan.choice import Chosen, choose
from .plan.planned import plan_job, read_table
from .preflight import check_paths
from .settings import Settings

# What disks, stores, memory and tables can do to what is made after the table.
_NOT_OURS = (LabelImagesError, JobError, OSError, pa.ArrowException, MemoryError)


def run(settings: Settings, console: Console) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos, and return what was done."""
    return with_metrics(settings, console, partial(_bring_up_to_date, settings, console))


def _bring_up_to_date(settings: Settings, console: Console) -> Outcome:
    deadline = math.inf if settings.max_runtime is None else time.monotonic() + settings.max_runtime
    job, run_id = Job(settings.table), new_run_id()
    with errors_in_history(job, run_id):
        # What cannot work is refused before anything is made beside the table.
        settings = check_paths(settings)
        if settings.report is not None:
            roots = [display(root_of(path)) for path in settings.paths]
            of_products = [root_of(place) for place in settings.beside.values()]
            check_place(settings.report, settings.table, roots, of_products)
        listed = read_list(settings.files_from)
        chosen = choose(job, settings, read_table(settings))
        chosen.announce(console)
        with ready_labeller(chosen.settings, chosen.explained) as labeller:
            console.info("model", labeller.identity.describe())
            for note in labeller.identity.notes:
                console.info("model_note", note)
            # Closed before another run may hold the job: tasks of a cluster write to it.
            with _held(job, settings, console) as beside:
                with closing(labeller):
                    outcome = _run(job, beside, chosen, listed, labeller, console, run_id, deadline)
                # Before another run may change the table that it is of.
                return _with_report(job, settings, outcome, console)


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
    settings, started = chosen.settings, time.perf_counter()
    planned = plan_job(job, chosen, listed, labeller, console)
    identity = labeller.identity  # by now surely the model's, where there is work
    started += planned.load_s
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


def _with_report(job: Job, settings: Settings, outcome: Outcome, console: Console) -> Outcome:
    """Make the report, where the settings ask for one. The table is written, and stays, if that
    cannot be done, and the run says how it ended.
    """
    if settings.report is None:
        return outcome
    started = time.perf_counter()
    try:
        written = write_report(settings.table, settings.report, settings.paths)
    except _NOT_OURS as error:
        reason = _reason(error)
        add_report_error(job, outcome, time.perf_counter() - started, reason)
        console.warn(
            "report",
            f"the table is written, its report is not: {reason}; when that is mended, `label-images "
            f"report {settings.table} --out {settings.report}` makes it",
        )
        return replace(outcome, report_failed=TableError.exit_code)
    console.info("report", written.line())
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
    reused = sum(receipt.reused for receipt in done.receipts.values())
    return Outcome(
        run_id=run.id,
        counts=manifest.counts,
        errors=errors,
        labelled=manifest.n_images - done.failures.total - reused,
        reused=reused,
        failures=done.failures,
        seconds=seconds,
        images=stages.images,
        waited=stages.wait_s / stages.at_once / max(seconds, 1e-9),
        stages=stages.to_record(),
        rates=stages.rates(done.labelled.placement["workers"]),
        mounts=mounts_of(manifest),
        drift=_drift(run, done, errors),
    )


def _drift(run: Run, done: LabelledJob, errors: dict[str, int]) -> Drift | None:
    """The drift; None, with a warning, where it cannot be computed: the table is written by now."""
    try:
        return drift_of(run, sum(errors.values()), done.receipts.values())
    except _NOT_OURS as error:
        run.console.warn("drift", f"how new photos differ is not known: {_reason(error)}")
        return None


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
