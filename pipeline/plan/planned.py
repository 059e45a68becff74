"""Planned: what a run is to do. It goes on with an unfinished job, or the photos are compared with
the table, and what is to be labelled is frozen as a new one.
"""

import os
import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from jobs.errors import JobLocked
from jobs.job import Job
from jobs.manifest import Manifest, ModelIdentity
from pipeline.console import Console
from pipeline.errors import TableError
from pipeline.failed_images import mounts_of
from pipeline.find.scan import root_of
from pipeline.label.labeller import Labeller
from pipeline.outcome import now_text
from pipeline.settings import Settings
from pipeline.table.labels import LABELS
from pipeline.table.record import PRODUCTS, TableRecord
from pipeline.table.table import read_record

from .announce import announce
from .choice import Chosen, ModelChoice
from .compare import Comparison, compare
from .guards import why_not_dropped, why_refused
from .unfinished import bases_of, find_unfinished, selection_of


@dataclass(frozen=True)
class Planned:
    """What a run is to do: label the `shards` that are left of the frozen job of `manifest`.

    Without a manifest the table is up to date: there is nothing to label and nothing to write.
    `counts` are the plan's, `errors` the table's failed rows by code, as it is now, and `mounts` the
    (root, folder) to be remembered as mount points. `load_s` are the seconds in which the labeller
    loaded its model, where it did so meanwhile.
    """

    manifest: Manifest | None
    counts: dict[str, int]
    mounts: tuple[tuple[str, str], ...]
    shards: list[int] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0


def plan_job(
    job: Job, chosen: Chosen, listed: bytes | None, labeller: Labeller, console: Console
) -> Planned:
    """Say what is to be done, holding the job, and freeze it. `listed` is what --files-from lists.

    The model is loaded when there is work for it, and before that is frozen: should it be another
    one than it was taken for, all is compared again. Raises TableError where labels would be lost
    that nobody has given leave to replace.
    """
    settings = chosen.settings
    record, selection = read_table(settings), selection_of(settings, listed)
    if (record.plan_id if record else None) != chosen.table_id:
        raise JobLocked(
            f"another run has just changed {settings.table}; run the same command again"
        )
    for name, place in record.beside.items() if record else ():
        if name not in settings.beside:
            text = f"the {name} in {place} stay as they are: --{name} {place} keeps them in step"
            console.info("beside", text)
    while True:
        identity, refusal, comparison = labeller.identity, None, None
        try:
            manifest = _unfinished(job, chosen, record, identity, selection, console)
            if manifest is None:
                comparison = _compared(chosen, listed, record, identity, console)
        except TableError as error:
            refusal = error
        known = comparison.record if comparison and comparison.changes_nothing else None
        if comparison and known and not _model_moved(known, settings, identity, console):
            job.finish(known.plan_id)
            errors: dict[str, int] = known.counts["errors"]
            mounts = comparison.unseen.mounts
            return Planned(None, comparison.plan.counts, mounts, errors=errors)
        started = time.perf_counter()
        is_same, load_s = labeller.load(), time.perf_counter() - started
        if is_same:
            break
        console.warn("model_changed", "the model is not the one it was taken for; planning again")
        console.info("model", labeller.identity.describe())
    if refusal:
        raise refusal
    if manifest is None:
        assert comparison
        replaces_all = settings.restart and record is not None
        manifest = _new_manifest(comparison, chosen, labeller, selection, replaces_all)
        manifest = job.freeze(manifest, comparison.plan)
    return _what_is_left(job, manifest, console, load_s)


def read_table(settings: Settings) -> TableRecord | None:
    """The record of the table to bring up to date; None without one.

    Raises TableError for one that is not ours, unless --overwrite gives leave to replace it, and for
    embeddings that are another table's.
    """
    for name, place in settings.beside.items():
        try:
            beside = read_record(place, PRODUCTS[name])
        except TableError as error:
            raise TableError(
                f"{error}. To have the {name} made anew, name another folder, or remove {place}"
            ) from error
        if beside and beside.labels_at != root_of(settings.table):
            raise TableError(
                f"the {name} in {place} are those of {beside.labels_at}, and not of "
                f"{root_of(settings.table)}; name another folder. Where the table has moved, remove "
                "them: they are made anew"
            )
    try:
        return read_record(settings.table, LABELS)
    except TableError:
        # Of a folder, files of others would remain.
        if settings.overwrite and not settings.is_dataset:
            return None
        raise


def _model_moved(
    record: TableRecord, settings: Settings, identity: ModelIdentity, console: Console
) -> bool:
    """Whether the table's model is no longer where the table says, and this run names its new place.

    Then the table is written again: a command that leaves the model to it would look in the old place
    for ever.
    """
    remembered = ModelChoice.from_record(record.choice)
    model = ModelChoice.of(settings, identity.address).model
    # The same place, and not there: the nodes of a cluster see it, and this machine does not.
    if remembered is None or remembered.model == model or not os.path.isabs(remembered.model):
        return False
    if os.path.exists(remembered.model):
        return False
    text = f"{settings.table} is written again, to name {model} as its model"
    console.info("model_moved", text, {"model": model})
    return True


def _unfinished(
    job: Job,
    chosen: Chosen,
    record: TableRecord | None,
    identity: ModelIdentity,
    selection: dict[str, Any],
    console: Console,
) -> Manifest | None:
    """The unfinished job to go on with. Raises TableError where one may not be dropped."""
    if chosen.settings.restart:
        return None
    manifest, obstacles = find_unfinished(
        job, record, identity.fingerprint, selection, chosen.settings
    )
    if manifest is None and (refusal := why_not_dropped(job, chosen, identity, record)):
        raise TableError(refusal)
    if obstacles:
        console.warn(
            "replan", f"the unfinished job cannot go on: {'; '.join(obstacles)}; planning again"
        )
    return manifest


def _compared(
    chosen: Chosen,
    listed: bytes | None,
    record: TableRecord | None,
    identity: ModelIdentity,
    console: Console,
) -> Comparison:
    """Compare the photos with the table, and say what was found. Raises TableError where a run may
    not do what follows from it.
    """
    comparison = compare(chosen.settings, listed, record, identity)
    refusal = why_refused(comparison, chosen, record)
    announce(comparison, console, is_refused=refusal is not None)
    if refusal:
        raise TableError(refusal)
    because = ", ".join(comparison.stale_because)
    if n_relabelled := comparison.plan.counts["relabelled"]:
        text = f"relabelled from embeddings: {n_relabelled:,}, since this changed: {because}"
        console.info("relabelled", text)
    elif comparison.plan.counts["stale"]:
        console.warn("stale", f"labelling all again, since this changed: {because}")
    return comparison


def _new_manifest(
    comparison: Comparison,
    chosen: Chosen,
    labeller: Labeller,
    selection: dict[str, Any],
    replaces_all: bool,
) -> Manifest:
    settings, identity = chosen.settings, labeller.identity
    n_images = len(comparison.plan.pending)
    return Manifest(
        plan_id=uuid.uuid4().hex,
        tool_version=version("label-images"),
        created_at=now_text(),
        selection=selection,
        base_table=comparison.record.plan_id if comparison.record else None,
        n_images=n_images,
        shard_size=settings.shard_size or labeller.shard_size(n_images),
        counts=comparison.plan.counts,
        model=identity.name,
        fingerprint=identity.fingerprint,
        settings=settings.to_record()
        | {
            "choice": ModelChoice.of(settings, identity.address).to_record(),
            "mounts": [list(mount) for mount in comparison.unseen.mounts],
            "replaces_all": replaces_all,
        },
        products=[LABELS.name, *settings.beside],
        bases=bases_of(settings),
        rescores=comparison.plan.rescores,
        moved=comparison.plan.moved,
    )


def _what_is_left(job: Job, manifest: Manifest, console: Console, load_s: float) -> Planned:
    receipts = job.receipts(manifest)
    if receipts:
        done = sum(receipt.rows for receipt in receipts.values())
        console.info(
            "resume", f"going on: {done:,} of {manifest.n_images:,} images are done already"
        )
    shards = [shard for shard in range(manifest.n_shards) if shard not in receipts]
    return Planned(manifest, manifest.counts, mounts_of(manifest), shards, load_s=load_s)
