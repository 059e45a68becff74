"""What a run is to do: go on with an unfinished job, or compare the photos with the table and plan.

Used by the run and by `label-images plan`, so that both say the same.
"""

import hashlib
import uuid
from importlib.metadata import version
from typing import Any

from jobs.errors import JobLocked
from jobs.job import Job
from jobs.manifest import Fingerprint, Manifest
from pipeline.console import Console
from pipeline.errors import TableError
from pipeline.label.labeller import Labeller
from pipeline.outcome import Outcome, now_text
from pipeline.settings import Settings
from pipeline.table.record import TableRecord
from pipeline.table.table import read_record

from .choice import Chosen, ModelChoice, choose_model
from .compare import compare, root_of
from .guards import announce, why_not_dropped, why_refused


def read_table(settings: Settings) -> TableRecord | None:
    """The record of the table to bring up to date; None without one.

    Raises TableError for one that is not ours, unless --overwrite gives leave to replace it.
    """
    try:
        return read_record(settings.table)
    except TableError:
        if (
            settings.overwrite and not settings.is_dataset
        ):  # of a folder, files of others would remain
            return None
        raise


def choose(job: Job, settings: Settings, record: TableRecord | None) -> Chosen:
    """Choose the model: the one asked for, or the table's, or that of a first job, unfinished."""
    if record is not None:
        remembered = ModelChoice.from_record(record.choice)
        return choose_model(settings, remembered, record.plan_id)
    manifest = None if settings.restart else job.manifest
    is_unfinished = manifest is not None and job.has_plan
    choice = manifest.settings.get("choice") if manifest and is_unfinished else None
    return choose_model(settings, ModelChoice.from_record(choice))


def prepare_job(
    job: Job,
    chosen: Chosen,
    listed: bytes | None,
    labeller: Labeller,
    console: Console,
    run_id: str,
) -> tuple[Manifest, list[int]] | Outcome:
    """Return the job and the shards to label; an Outcome where the table is up to date already.

    Raises TableError where labels would be lost that nobody has given leave to replace.
    """
    settings, identity = chosen.settings, labeller.identity
    record, selection = read_table(settings), selection_of(settings, listed)
    if (record.plan_id if record else None) != chosen.table_id:
        raise JobLocked(
            f"another run has just changed {settings.table}; run the same command again"
        )
    manifest = None
    if not settings.restart:
        manifest, obstacles = find_unfinished(job, record, identity.fingerprint, selection)
        refusal = why_not_dropped(job, chosen, identity, record) if manifest is None else None
        if refusal:
            raise TableError(refusal)
        if obstacles:
            console.warn(
                "replan", f"the unfinished job cannot go on: {'; '.join(obstacles)}; planning again"
            )
    if manifest is None:
        comparison = compare(settings, listed, record, identity)
        refusal = why_refused(comparison, chosen, record)
        announce(comparison, console, is_refused=refusal is not None)
        if refusal:
            raise TableError(refusal)
        counts = comparison.plan.counts
        if counts["stale"]:
            console.warn(
                "stale",
                f"labelling all again, since this changed: {', '.join(comparison.stale_because)}",
            )
        if comparison.record and comparison.plan.changes_nothing:
            job.finish(comparison.record.plan_id)
            return Outcome(
                run_id,
                counts,
                comparison.record.counts["errors"],
                changed=False,
                mounts=comparison.unseen.mounts,
            )
        n_images = len(comparison.plan.pending)
        manifest = Manifest(
            plan_id=uuid.uuid4().hex,
            tool_version=version("label-images"),
            created_at=now_text(),
            selection=selection,
            base_table=comparison.record.plan_id if comparison.record else None,
            n_images=n_images,
            shard_size=settings.shard_size or labeller.shard_size(n_images),
            counts=counts,
            model=identity.name,
            fingerprint=identity.fingerprint,
            settings=settings.to_record()
            | {
                "choice": ModelChoice.of(settings, identity.address).to_record(),
                "mounts": [list(mount) for mount in comparison.unseen.mounts],
                "replaces_all": settings.restart and record is not None,
            },
        )
        manifest = job.freeze(manifest, comparison.plan)
    receipts = job.receipts(manifest)
    if receipts:
        done = sum(receipt.rows for receipt in receipts.values())
        console.info(
            "resume", f"going on: {done:,} of {manifest.n_images:,} images are done already"
        )
    return manifest, [shard for shard in range(manifest.n_shards) if shard not in receipts]


def selection_of(settings: Settings, listed: bytes | None) -> dict[str, Any]:
    """What decides which files are found, as JSON gives it back."""
    return {
        "roots": sorted({root_of(path) for path in settings.paths}),
        **settings.wanted.to_record(),
        "files_from_sha256": hashlib.sha256(listed).hexdigest() if listed is not None else None,
    } | ({"forget": sorted(map(root_of, settings.forget))} if settings.forget else {})


def find_unfinished(
    job: Job, record: TableRecord | None, fingerprint: Fingerprint, selection: dict[str, Any]
) -> tuple[Manifest | None, list[str]]:
    """Return the manifest of an unfinished job that can go on, or else what stands against it."""
    manifest = job.manifest
    table_id = record.plan_id if record else None
    if not job.has_plan or not job.manifest_path.exists():
        return None, []
    if manifest is None:
        return None, ["its manifest is damaged or of an older version"]
    if manifest.plan_id == table_id:
        return None, []
    obstacles = fingerprint.differences(manifest.fingerprint)
    if not job.proves_plan(manifest):
        obstacles.append("its plan is not as it was written")
    if manifest.selection != selection:
        obstacles.append(
            "PATHs, --include, --exclude, --files-from or the columns of tables are others"
        )
    if manifest.base_table not in (
        None,
        table_id,
    ):  # without one (--restart) no row of the table is needed
        obstacles.append("the table was replaced or removed meanwhile")
    return (None, obstacles) if obstacles else (manifest, [])
