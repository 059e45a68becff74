"""What a run may not do to a table without a word from the user, and what it says of a plan.

Labels are not lost to a night in which something cannot be seen, and not replaced by a command that
did not ask for it.
"""

import os
from collections.abc import Sequence

from jobs.job import Job
from jobs.manifest import ModelIdentity
from jobs.storage.object_store import StorePath
from pipeline.console import Console
from pipeline.failed_images import Failures
from pipeline.find.source import locate
from pipeline.find.walk import is_mount
from pipeline.path_names import printable
from pipeline.settings import Settings
from pipeline.table.record import TableRecord

from .choice import Chosen, ModelChoice
from .compare import Comparison

# Where so few rows are to be labelled again, nobody need say so.
FEW_ROWS = 200

# So many of the places that could not be looked at are named.
_PLACES_SHOWN = 20


def why_refused(comparison: Comparison, chosen: Chosen, record: TableRecord | None) -> str | None:
    """Say why a plan for the table of `record` is not carried out: it costs labels, and nobody said
    that it may.
    """
    settings, unseen, n_stale = chosen.settings, comparison.unseen, comparison.plan.counts["stale"]
    because = ", ".join(comparison.stale_because)
    if unseen.n_rows and (because or settings.restart):
        why = f"this changed: {because}" if because else "--restart was given"
        return (
            f"{'; '.join(unseen.reasons[:3])}: {unseen.n_rows:,} rows of {settings.table} cannot "
            f"be labelled again, and all would have to be, since {why}. The table stays as it is: "
            "mount what is missing and run the same command again, keep to the model and the "
            "settings that the table has, or drop those rows with --forget FOLDER"
        )
    if record is None or not n_stale or chosen.may_replace:
        return None
    if comparison.is_other_model and ModelChoice.from_record(record.choice) is None:
        return (
            f"{settings.table} was labelled with the model {record.model}, and this command names "
            f"none, which stands for {settings.model}; name the table's with --model, or replace "
            "its labels with --relabel. The table stays as it is"
        )
    if n_stale <= FEW_ROWS:
        return None
    return (
        f"{n_stale:,} labels of {settings.table} would be replaced, since this changed: "
        f"{because}. Nobody asked for that, so the table stays as it is; run once with --relabel "
        "to replace them, or name the --model"
    )


def announce(comparison: Comparison, console: Console, is_refused: bool = False) -> None:
    """Say what a comparison found, and what could not be looked at; a refusal says that itself."""
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
    for line in [] if is_refused else unseen_lines(comparison):
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
    lines = [*(f"{reason}{kept}" for reason in unseen.reasons), *unseen.notices]
    if len(lines) > _PLACES_SHOWN:
        n_more = len(lines) - _PLACES_SHOWN
        lines[_PLACES_SHOWN:] = [f"and {n_more:,} more places could not be looked at"]
    return lines


def why_not_dropped(
    job: Job, chosen: Chosen, identity: ModelIdentity, record: TableRecord | None
) -> str | None:
    """Say why an unfinished job of another model is neither gone on with nor dropped.

    A command that names no model means the table's. What the job has done is not dropped for that.
    """
    manifest = job.manifest
    if record is None or manifest is None or not job.has_plan or chosen.may_replace:
        return None
    choice = ModelChoice.from_record(manifest.settings.get("choice"))
    is_other = choice is not None and choice != ModelChoice.of(chosen.settings, identity.address)
    if manifest.plan_id == record.plan_id or not is_other or not job.receipts(manifest):
        return None
    return (
        f"{chosen.settings.table} has an unfinished job of the model {manifest.model}, and this "
        "command means the table's; go on with the job by the command that began it, or drop it "
        f"by naming --model {chosen.settings.model}"
    )


def why_not_merged(
    failures: Failures, settings: Settings, mounts: Sequence[Sequence[str]]
) -> str | None:
    """Say why a labelled job does not become the table: a PATH, or one of the `mounts` below it
    that were there when it was planned, has gone since.

    Its images would have no label any more, and had one.
    """
    gone = [place for place in failures.away if _is_gone(*place, settings, mounts)]
    if not gone:
        return None
    n = sum(failures.away[place] for place in gone)
    shown = ", ".join(printable(f"{root}/{folder}".rstrip("/")) for root, folder in gone[:3])
    return (
        f"{shown} is not there any more, or empty, as if nothing were mounted there: {n:,} images "
        f"that have a label in {settings.table} could not be labelled again. The table stays as it "
        "is, and so does what else was labelled; mount what is missing and run the same command "
        "again, or drop those rows with --forget FOLDER"
    )


def _is_gone(root: str, folder: str, settings: Settings, mounts: Sequence[Sequence[str]]) -> bool:
    try:
        place = locate(*([root, folder] if folder else [root]), places=settings.paths)
        if isinstance(place, StorePath):
            return not place.exists()
        if [root, folder] in [list(mount) for mount in mounts] and not is_mount(place):
            return True
        if not os.path.isdir(place):
            return not os.path.exists(place)
        with os.scandir(place) as entries:
            return all(_is_nothing(os.fsdecode(entry.name)) for entry in entries)
    except OSError:
        return True


def _is_nothing(name: str) -> bool:
    """Whether a bare mount point may hold an entry of that name."""
    return name.startswith(".") or name == "lost+found"
