"""The run: plan -> label -> audit -> merge.

To label is load -> predict -> write -> commit (local.py).
"""

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from jobs.job import Job
from jobs.manifest import ModelIdentity
from jobs.receipts import UNKNOWN, Receipt, sha256_file
from pipeline.find.file_list import read_list
from pipeline.label.audit import audit
from pipeline.label.labeller import Labelled, Labeller, Run
from pipeline.load.processes import start_early
from pipeline.table.merge import Merge, Parts, write_merged
from pipeline.table.partitioned import write_dataset
from pipeline.table.record import TableRecord
from pipeline.table.table import read_index, read_record
from vit.errors import ModelError

from .choice import Chosen, ModelChoice
from .console import Console
from .errors import LabelImagesError, TableError
from .failed import Failures, read_failures
from .guards import why_not_merged
from .history import errors_in_history, write_down
from .outcome import Outcome, now_text, run_record
from .path_names import display
from .planning import choose, prepare_job, read_table
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
        with _labeller(chosen) as labeller:
            console.info("model", labeller.identity.describe())
            for note in labeller.identity.notes:
                console.info("model_note", note)
            with job.held() as is_alone:
                if not is_alone:
                    console.warn(
                        "no_lock",
                        f"nothing keeps another run off {job.out}: this store, or this "
                        "installation, has no conditional writes (for S3 install "
                        "label-images[s3]); see to it that no two run at once",
                    )
                return _run(job, chosen, listed, labeller, console, run_id, deadline)


def _run(
    job: Job,
    chosen: Chosen,
    listed: bytes | None,
    labeller: Labeller,
    console: Console,
    run_id: str,
    deadline: float,
) -> Outcome:
    """Plan, label, audit and merge, holding the job."""
    settings, started = chosen.settings, time.perf_counter()
    prepared = prepare_job(job, chosen, listed, labeller, console, run_id)
    if isinstance(prepared, Outcome):  # the table is up to date
        outcome = replace(prepared, seconds=time.perf_counter() - started)
        write_down(job, outcome, settings, labeller.identity.name)
        return outcome
    manifest, shards = prepared
    this = Run(job, manifest, labeller.identity, settings, console, run_id, deadline)
    labelled, receipts, failures = label(this, labeller, shards)
    audited = audit(this, labeller)
    errors = merge(this, receipts.values())
    outcome = _outcome(this, labelled, failures, errors, time.perf_counter() - started)
    record = run_record(outcome, manifest, labelled.placement, labelled.libraries) | {
        "audit": audited.to_record()
    }
    if not settings.is_dataset:
        record["table_sha256"] = sha256_file(job.out)
    write_down(job, outcome, settings, labeller.identity.name, labelled, record)
    job.finish(manifest.plan_id)
    return outcome


def label(
    run: Run, labeller: Labeller, shards: list[int]
) -> tuple[Labelled, dict[int, Receipt], Failures]:
    """Label shards; return how, all shards' receipts, and what failed.

    Images whose file could not be had, and that have a label in the table, are tried once more: a
    disk may have been away for a while, in this run or in one before. Raises TableError where it
    is away still.
    """
    labelled = labeller.label(run, shards)
    receipts, failures = _finished(run)
    if failures.away:
        run.job.drop_shards(failures.away_shards)
        refuse_to_merge(failures, run)
        stages = labelled.stages
        stages += labeller.label(run, failures.away_shards).stages
        receipts, failures = _finished(run)
        refuse_to_merge(failures, run)
    return labelled, receipts, failures


def _outcome(
    run: Run, labelled: Labelled, failures: Failures, errors: dict[str, int], seconds: float
) -> Outcome:
    manifest, stages = run.manifest, labelled.stages
    return Outcome(
        run_id=run.id,
        counts=manifest.counts,
        errors=errors,
        labelled=manifest.n_images - failures.total,
        failures=failures,
        seconds=seconds,
        images=stages.images,
        waited=stages.wait_s / stages.at_once / max(seconds, 1e-9),
        stages=stages.to_record(),
        rates=stages.rates(labelled.placement["workers"]),
        mounts=tuple((root, folder) for root, folder in manifest.settings.get("mounts", [])),
    )


def _finished(run: Run) -> tuple[dict[int, Receipt], Failures]:
    """The receipts of all shards, and what failed. Raises LabelImagesError where one is missing."""
    # On Ray others have written them, perhaps to a disk that shows it late.
    receipts = run.job.receipts(run.manifest, proven=run.settings.engine == "ray")
    if len(receipts) != run.manifest.n_shards:
        n_missing = run.manifest.n_shards - len(receipts)
        raise LabelImagesError(
            f"{n_missing:,} of {run.manifest.n_shards:,} shards are not to be seen in "
            f"{run.job.folder}, though they were labelled; run the same command again"
        )
    return receipts, read_failures(run.job, run.manifest, receipts)


def refuse_to_merge(failures: Failures, run: Run) -> None:
    """Raise TableError where a disk is away; what it should have given is done again then."""
    mounts = run.manifest.settings.get("mounts", [])
    if refusal := why_not_merged(failures, run.settings, mounts):
        run.job.drop_shards(failures.away_shards)
        raise TableError(refusal)


@contextmanager
def _labeller(chosen: Chosen) -> Iterator[Labeller]:
    """Whoever the settings choose to label, ready. Only what it needs is imported."""
    settings = chosen.settings
    if settings.engine == "ray":
        from pipeline.label.ray_driver import Cluster, connected

        with connected(settings) as ray:
            yield _loaded(chosen, lambda: Cluster(ray, settings))
        return
    start_early(settings)
    from pipeline.label.placement import choose_device

    choose_device(settings.device)  # refused before the model is loaded
    yield _machine(chosen)


def _machine(chosen: Chosen) -> Labeller:
    from pipeline.label.local import Machine

    return _loaded(chosen, lambda: Machine(chosen.settings))


def _loaded(chosen: Chosen, load: Callable[[], Labeller]) -> Labeller:
    try:
        return load()
    except ModelError as error:
        raise chosen.explained(error) from error


def load_identity(chosen: Chosen) -> ModelIdentity:
    """The identity of the model that a run would use. Raises ModelError."""
    return _machine(chosen).identity


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def merge(run: Run, receipts: Iterable[Receipt]) -> dict[str, int]:
    """Make the table of carried-over rows and parts; return its failed rows by error code."""
    job, manifest = run.job, run.manifest
    job.check_held()
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    before = read_record(base) if base is not None and len(kept) else None
    made_by = before.made_by.copy() if before else []
    for receipt in receipts:
        maker = receipt.made_by or UNKNOWN
        if maker not in made_by:
            made_by.append(maker)
    record = TableRecord(
        plan_id=manifest.plan_id,
        created_at=now_text(),
        run_id=run.id,
        tool_version=version("label-images"),
        model=run.identity.name,
        fingerprint=manifest.fingerprint.digest,
        fingerprint_fields=manifest.fingerprint.to_record(),
        made_by=made_by,
        roots=[display(root) for root in manifest.selection["roots"]],
        selection=run.settings.wanted.to_record(),
        choice=ModelChoice.of(run.settings, run.identity.address).to_record(),
        mounts=[(root, folder) for root, folder in manifest.settings.get("mounts", [])],
    )
    parts = Parts([job.part_path(shard) for shard in range(manifest.n_shards)], manifest.shard_size)
    whole = Merge(kept, job.pending()["position"].to_numpy(), parts)
    classes = run.identity.classes()
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, classes)
    return write_merged(job.out, base, whole, record, classes)
