"""A whole job, labelled: all its shards, and what was away meanwhile once more.

Images whose file could not be had, and that have a label in the table, are tried again: a disk may
have been away for a while, in this run or in one before. Where it is away still, the job does not
become the table.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.receipts import Receipt
from jobs.storage.object_store import StorePath
from pipeline.errors import LabelImagesError, TableError
from pipeline.failed_images import Failures, mounts_of, read_failures
from pipeline.find.source import locate
from pipeline.find.walk import is_mount
from pipeline.path_names import printable
from pipeline.settings import Settings
from pipeline.so_many import so_many
from pipeline.table.record import PRODUCTS
from pipeline.table.table import read_record

from .labeller import Labelled, Labeller, Run


@dataclass(frozen=True)
class LabelledJob:
    """How the shards of this run were labelled, the receipts of all shards, and what failed."""

    labelled: Labelled
    receipts: dict[int, Receipt]
    failures: Failures


def label_job(run: Run, labeller: Labeller, shards: Sequence[int]) -> LabelledJob:
    """Label `shards`, those of a job that are left. Raises TableError where a disk is away."""
    labelled = labeller.label(run, shards)
    done = _finished(run, labelled)
    if done.failures.away and not _is_being_switched(run):
        run.job.drop_shards(done.failures.away_shards)
        _refuse_where_away(run, done.failures)
        stages = labelled.stages
        stages += labeller.label(run, done.failures.away_shards).stages
        done = _finished(run, labelled)
        _refuse_where_away(run, done.failures)
    return done


def _is_being_switched(run: Run) -> bool:
    """Whether a run before this one ended while it switched the products: their rows are settled."""
    records = [read_record(job.out, PRODUCTS[name]) for name, job in run.beside.items()]
    return any(record and record.plan_id == run.manifest.plan_id for record in records)


def _finished(run: Run, labelled: Labelled) -> LabelledJob:
    """A job all of whose shards are done. Raises LabelImagesError where a receipt is missing."""
    # On Ray others have written them, perhaps to a disk that shows it late.
    receipts = run.job.receipts(run.manifest, proven=run.settings.engine == "ray")
    if len(receipts) != run.manifest.n_shards:
        n_missing = run.manifest.n_shards - len(receipts)
        raise LabelImagesError(
            f"{n_missing:,} of {run.manifest.n_shards:,} shards are not to be seen in "
            f"{run.job.folder}, though they were labelled; run the same command again"
        )
    return LabelledJob(labelled, receipts, read_failures(run.job, run.manifest, receipts))


def _refuse_where_away(run: Run, failures: Failures) -> None:
    """Raise TableError where a PATH, or a mount point below it that was there when the job was
    planned, has gone since: its images would have no label any more, and had one.
    """
    mounts = mounts_of(run.manifest)
    gone = [place for place in failures.away if _is_gone(*place, run.settings, mounts)]
    if not gone:
        return
    run.job.drop_shards(failures.away_shards)  # done again by the run that finds the disk back
    n = sum(failures.away[place] for place in gone)
    shown = ", ".join(printable(f"{root}/{folder}".rstrip("/")) for root, folder in gone[:3])
    raise TableError(
        f"{shown} is not there any more, or empty, as if nothing were mounted there: "
        f"{so_many(n, 'image that has', 'images that have')} a label in {run.settings.table} "
        "could not be labelled again. The table stays as it is, and so does what else was labelled; "
        "mount what is missing and run the same command again, or drop those rows with --forget "
        "FOLDER"
    )


def _is_gone(root: str, folder: str, settings: Settings, mounts: Sequence[tuple[str, str]]) -> bool:
    try:
        place = locate(*([root, folder] if folder else [root]), places=settings.paths)
        if isinstance(place, StorePath):
            return not place.exists()
        if (root, folder) in mounts and not is_mount(place):
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
