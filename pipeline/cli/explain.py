"""A plan in words: what a run would do, and why (`label-images plan`)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.job import Job
from jobs.manifest import ModelIdentity
from pipeline.console import Console, duration
from pipeline.errors import UsageError
from pipeline.find.file_list import read_list
from pipeline.label.deferred import DeferredMachine
from pipeline.plan.announce import (
    clutter_line,
    left_out_lines,
    moved_lines,
    raw_lines,
    repeated_lines,
    unseen_lines,
    young_line,
)
from pipeline.plan.choice import choose
from pipeline.plan.compare import Comparison, compare
from pipeline.plan.guards import why_not_dropped, why_refused
from pipeline.plan.planned import read_table
from pipeline.plan.unfinished import find_unfinished, selection_of
from pipeline.preflight import check_paths
from pipeline.settings import Settings

# On fewer images a rate mostly measures how long starting takes.
_RATE_FROM_IMAGES = 100

_MEANINGS = {
    "found": "images found",
    "new": "to label: not in the table (with --restart: all)",
    "changed": "to label: size or time changed",
    "stale": "to label: the model or a setting changed",
    "retry": "to label: failed before, for a reason that may have passed",
    "incomplete": "to label: has a label, but no embedding yet (--embeddings)",
    "relabelled": "to relabel from their embeddings; no image is read",
    "carried": "carried over as they are",
    "gone": "rows to drop: no such image any more",
}


@dataclass(frozen=True)
class Explained:
    """`facts` say the same as `lines` for programs; `refusal` why a run would not do it."""

    lines: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None


def explain_plan(settings: Settings, console: Console) -> Explained:
    """Say what a run with these settings would do, and why; writes nothing and holds no lock."""
    if settings.out is None:
        raise UsageError(
            "plan compares photos with a table; name it with --out (it need not exist yet)"
        )
    settings = check_paths(settings)
    job, record = Job(settings.table), read_table(settings)
    chosen = choose(job, settings, record)
    chosen.announce(console)
    identity = DeferredMachine(chosen.settings, chosen.explained, writes=False).identity
    console.info("model", identity.describe())
    for note in identity.notes:
        console.info("model_note", note)
    listed = read_list(settings.files_from)
    lines, obstacles = [], list[str]()
    if not settings.restart:
        selection = selection_of(settings, listed)
        manifest, obstacles = find_unfinished(
            job, record, identity.fingerprint, selection, settings
        )
        if manifest:
            done = sum(receipt.rows for receipt in job.receipts(manifest).values())
            left = manifest.n_images - done
            lines = [
                f"go on with the unfinished job: {done:,} of {manifest.n_images:,} images are "
                "done already"
            ]
            facts: dict[str, Any] = {"unfinished": {"images": manifest.n_images, "done": done}}
            return Explained(lines + list(_time_line(job, identity, left, facts)), facts)
        if refusal := why_not_dropped(job, chosen, identity, record):
            return Explained([], {"refusal": refusal}, refusal)
        lines += [f"the unfinished job cannot go on: {'; '.join(obstacles)}"] if obstacles else []
    comparison = compare(chosen.settings, listed, record, identity)
    counts = comparison.plan.counts
    facts = _facts(comparison, obstacles)
    lines += [f"{counts[name]:12,}  {name:<10}  {meaning}" for name, meaning in _MEANINGS.items()]
    if counts["reused"]:
        lines.append(
            f"{counts['reused']:12,}  reused      of the new ones: most likely the same bytes as a known "
            "image, whose labels they take then"
        )
    if counts["unseen"]:
        lines.append(
            f"{counts['unseen']:12,}  unseen      kept as they are: what they are of cannot be "
            "looked at"
        )
    if counts["stale"] or counts["relabelled"]:
        lines.append(f"stale because of {', '.join(comparison.stale_because)}")
    lines += [*left_out_lines(comparison), *raw_lines(comparison)]
    if comparison.n_clutter:
        lines.append(clutter_line(comparison))
    if comparison.n_young:
        lines.append(young_line(comparison))
    lines += [
        *moved_lines(comparison),
        *repeated_lines(comparison),
        *unseen_lines(comparison),
        *comparison.scan.linked,
    ]
    n_decoded = len(comparison.plan.pending) - counts["reused"]
    lines += _time_line(job, identity, n_decoded, facts)
    facts["refusal"] = refusal = why_refused(comparison, chosen, record)
    return Explained(lines, facts, refusal)


def _facts(comparison: Comparison, obstacles: list[str]) -> dict[str, Any]:
    return {
        "counts": comparison.plan.counts,
        "other_files": comparison.scan.n_other,
        "left_out": comparison.scan.clutter.to_record(),
        "dropped_clutter": comparison.n_clutter,
        "raw_left_out": comparison.scan.n_raw,
        "paired": comparison.scan.n_paired,
        "repeated": comparison.scan.n_repeated,
        "linked": comparison.scan.linked,
        "moved": comparison.plan.moved,
        "stale_because": comparison.stale_because,
        "unseen": comparison.unseen.reasons,
        "young": comparison.n_young,
        "obstacles": obstacles,
    }


def _time_line(
    job: Job, identity: ModelIdentity, n_images: int, facts: dict[str, Any]
) -> Iterator[str]:
    """Say how long labelling takes, by the rate of an earlier run, and by which; adds it to
    `facts`.
    """
    if not n_images:
        return
    runs = [run for run in job.history() if run.get("images_per_s")]
    long_ones = [run for run in runs if run["images"] >= _RATE_FROM_IMAGES]
    if not runs:
        yield "how long it takes is not known: no run has labelled for this table yet"
        return
    basis = (long_ones or runs)[-1]
    seconds = n_images / basis["images_per_s"]
    facts["estimate"] = {
        "seconds": round(seconds),
        "by_run": basis["run_id"],
        "images_per_s": basis["images_per_s"],
    }
    other = f", with the model {basis['model']}" if basis["model"] != identity.name else ""
    about = f"about {duration(seconds)}" if seconds >= 60 else "less than a minute"
    yield (
        f"takes {about}, at the {basis['images_per_s']:,.1f} images/s of the run of "
        f"{basis['finished_at']} ({basis['images']:,} images, {basis['precision']} on "
        f"{basis['device']}{other})"
    )
