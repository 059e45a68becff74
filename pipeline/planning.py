"""What a run is to do: go on with an unfinished job, or compare the photos with the table and plan.

Used by the run and by `label-images plan`, so that both say the same.
"""

import hashlib
import uuid
from importlib.metadata import version
from typing import Any

from jobs.job import Job
from jobs.manifest import Fingerprint, Manifest
from pipeline.label.labeller import Labeller
from pipeline.table.table import read_record

from .choice import Chosen, ModelChoice, choose_model
from .compare import Comparison, compare, root_of
from .console import Console
from .errors import TableError
from .outcome import Outcome, now_text
from .settings import Settings

# Where so few rows are to be labelled again, nobody need say so.
FEW_ROWS = 200

# So many of the places that could not be looked at are named.
_PLACES_SHOWN = 20


def read_table(settings: Settings) -> dict[str, Any] | None:
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


def choose(job: Job, settings: Settings, record: dict[str, Any] | None) -> Chosen:
    """Choose the model: the one asked for, or that of the unfinished job, or of the table."""
    manifest = None if settings.restart else job.manifest
    is_unfinished = (
        manifest is not None and job.has_plan and manifest.plan_id != (record or {}).get("plan_id")
    )
    remembered = (
        ModelChoice.from_record(manifest.settings.get("choice"))
        if manifest and is_unfinished
        else None
    )
    return choose_model(
        settings, remembered or ModelChoice.from_record((record or {}).get("choice"))
    )


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
    manifest = None
    if not settings.restart:
        manifest, obstacles = find_unfinished(job, record, identity.fingerprint, selection)
        if obstacles:
            console.warn(
                "replan", f"the unfinished job cannot go on: {'; '.join(obstacles)}; planning again"
            )
    if manifest is None:
        comparison = compare(settings, listed, record, identity)
        announce(comparison, console)
        if refusal := why_refused(comparison, chosen, record):
            raise TableError(refusal)
        counts = comparison.plan.counts
        if counts["stale"]:
            console.warn(
                "stale",
                f"labelling all again, since this changed: {', '.join(comparison.stale_because)}",
            )
        if comparison.record and comparison.plan.changes_nothing:
            job.finish(comparison.record["plan_id"])
            return Outcome(run_id, counts, comparison.record["counts"]["errors"], changed=False)
        n_images = len(comparison.plan.pending)
        manifest = Manifest(
            plan_id=uuid.uuid4().hex,
            tool_version=version("label-images"),
            created_at=now_text(),
            selection=selection,
            base_table=comparison.record["plan_id"] if comparison.record else None,
            n_images=n_images,
            shard_size=settings.shard_size or labeller.shard_size(n_images),
            counts=counts,
            model=identity.name,
            fingerprint=identity.fingerprint,
            settings=settings.to_record()
            | {"choice": ModelChoice.of(settings, identity.address).to_record()},
        )
        manifest = job.freeze(manifest, comparison.plan)
    receipts = job.receipts(manifest)
    if receipts:
        done = sum(receipt.rows for receipt in receipts.values())
        console.info(
            "resume", f"going on: {done:,} of {manifest.n_images:,} images are done already"
        )
    return manifest, [shard for shard in range(manifest.n_shards) if shard not in receipts]


def why_refused(
    comparison: Comparison, chosen: Chosen, record: dict[str, Any] | None
) -> str | None:
    """Say why a plan for the table of `record` is not carried out: it costs labels, and nobody said
    that it may.
    """
    settings, unseen, n_stale = chosen.settings, comparison.unseen, comparison.plan.counts["stale"]
    because = ", ".join(comparison.stale_because)
    if unseen.n_rows and (because or settings.restart):
        why = f"this changed: {because}" if because else "--restart was given"
        return (
            f"{'; '.join(unseen.reasons[:3])}: {unseen.n_rows:,} rows of {settings.table} cannot "
            f"be labelled again, "
            f"and all would have to be, since {why}. The table stays as it is: mount what is "
            f"missing and run the same "
            "command again, keep to the model and the settings that the table has, or drop those "
            "rows with "
            "--forget FOLDER"
        )
    if record is None or not n_stale or chosen.is_asked_for:
        return None
    if comparison.is_other_model and ModelChoice.from_record(record.get("choice")) is None:
        return (
            f"{settings.table} was labelled with the model {record['model']}, and this command "
            f"names none, which "
            f"stands for {settings.model}; name the table's with --model, or replace its labels "
            f"with --relabel. The "
            "table stays as it is"
        )
    if n_stale <= FEW_ROWS:
        return None
    return (
        f"{n_stale:,} labels of {settings.table} would be replaced, since this changed: {because}. "
        f"Nobody asked for "
        "that, so the table stays as it is; run once with --relabel to replace them, or name the "
        "--model"
    )


def announce(comparison: Comparison, console: Console) -> None:
    """Say what a comparison found, and what could not be looked at."""
    counts, other = comparison.plan.counts, comparison.scan.other
    shown = {
        name: count for name, count in counts.items() if name not in ("unseen", "unseen_places")
    }
    text = ", ".join(
        f"{count:,} {name}" for name, count in shown.items() if count or name == "found"
    )
    if other:
        text += f"; other files left out: {other}"
    console.info("plan", text, {"counts": counts, "other_files": other.total()})
    if comparison.n_young:
        console.info("settle", young_line(comparison), {"young": comparison.n_young})
    for line in repeated_lines(comparison):
        console.info("repeated", line, {"repeated": comparison.scan.n_repeated})
    for line in unseen_lines(comparison):
        console.warn("unseen", line)
    for line in comparison.scan.linked:
        console.warn("linked", line)


def young_line(comparison: Comparison) -> str:
    return f"left for the next run, changed too lately (--settle): {comparison.n_young:,}"


def repeated_lines(comparison: Comparison) -> list[str]:
    n = comparison.scan.n_repeated
    return (
        [f"{n:,} images lie below several PATHs; each has one row, under the outermost"]
        if n
        else []
    )


def unseen_lines(comparison: Comparison) -> list[str]:
    """What could not be looked at, a line each, and what becomes of its rows."""
    unseen = comparison.unseen
    kept = (
        "; the rows the table has of it are kept (--forget FOLDER drops them)"
        if unseen.n_rows
        else ""
    )
    lines = [f"{reason}{kept}" for reason in unseen.reasons[:_PLACES_SHOWN]]
    if len(unseen.reasons) > _PLACES_SHOWN:
        lines.append(
            f"and {len(unseen.reasons) - _PLACES_SHOWN:,} more places could not be looked at"
        )
    return lines


def selection_of(settings: Settings, listed: bytes | None) -> dict[str, Any]:
    """What decides which files are found, as JSON gives it back."""
    return {
        "roots": sorted({root_of(path) for path in settings.paths}),
        **settings.wanted.to_record(),
        "files_from_sha256": hashlib.sha256(listed).hexdigest() if listed is not None else None,
    } | ({"forget": sorted(map(root_of, settings.forget))} if settings.forget else {})


def find_unfinished(
    job: Job, record: dict[str, Any] | None, fingerprint: Fingerprint, selection: dict[str, Any]
) -> tuple[Manifest | None, list[str]]:
    """Return the manifest of an unfinished job that can go on, or else what stands against it."""
    manifest = job.manifest
    table_id = record["plan_id"] if record else None
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
