"""What a run is to do: go on with an unfinished job, or compare the photos with the table and plan.

Used by the run and by `label-images plan`, so that both say the same.
"""

import hashlib
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.manifest import Fingerprint, Manifest
from jobs.plan import (
    Plan,
    hold_back,
    is_in_order,
    make_plan,
    rows_below,
    settled_archives,
    sort_and_drop_repeated,
)
from jobs.store import AnyPath

from .errors import TableError
from .filelist import read_list
from .labeller import Labeller
from .names import display, printable
from .overlap import empty_places
from .progress import Console
from .report import Outcome, now_text
from .samples import RETRYABLE
from .scan import Scan, scan
from .settings import Settings
from .tables import read_known, read_record


@dataclass(frozen=True)
class Comparison:
    """The photos as found against the table as it is; `record` is the table's, None for no table."""

    plan: Plan
    record: dict[str, Any] | None
    stale_because: list[str]  # the fingerprint's fields that differ
    scan: Scan
    n_young: int  # left for the next run by --settle


def read_table(settings: Settings) -> dict[str, Any] | None:
    """The record of the table to bring up to date; None without one.

    Raises TableError for one that is not ours, unless --overwrite gives leave to replace it.
    """
    try:
        return read_record(settings.table)
    except TableError:
        if settings.overwrite and not settings.is_dataset:  # of a folder, files of others would remain
            return None
        raise


def prepare_job(
    job: Job, settings: Settings, labeller: Labeller, console: Console
) -> tuple[Manifest, list[int]] | Outcome:
    """Return the job and the shards to label; an Outcome where the table is up to date already."""
    record = read_table(settings)
    fingerprint = labeller.identity.fingerprint
    listed = read_list(settings.files_from)
    selection = selection_of(settings, listed)
    manifest = None
    if not settings.restart:
        manifest, obstacles = find_unfinished(job, record, fingerprint, selection)
        if obstacles:
            console.warn("replan", f"the unfinished job cannot go on: {'; '.join(obstacles)}; planning again")
    if manifest is None:
        comparison = compare(settings, listed, record, fingerprint)
        announce(comparison, console)
        if comparison.record and comparison.plan.changes_nothing:
            job.finish(comparison.record["plan_id"])
            return Outcome(comparison.plan.counts, errors=comparison.record["counts"]["errors"], changed=False)
        n_images = len(comparison.plan.pending)
        manifest = Manifest(
            plan_id=uuid.uuid4().hex,
            tool_version=version("label-images"),
            created_at=now_text(),
            selection=selection,
            base_table=comparison.record["plan_id"] if comparison.record else None,
            n_images=n_images,
            shard_size=settings.shard_size or labeller.shard_size(n_images),
            counts=comparison.plan.counts,
            model=labeller.identity.name,
            fingerprint=fingerprint,
            settings=settings.to_record(),
        )
        manifest = job.freeze(manifest, comparison.plan)
    receipts = job.receipts(manifest)
    if receipts:
        done = sum(receipt.rows for receipt in receipts.values())
        console.info("resume", f"going on: {done:,} of {manifest.n_images:,} images are done already")
    return manifest, [shard for shard in range(manifest.n_shards) if shard not in receipts]


def compare(
    settings: Settings, listed: bytes | None, record: dict[str, Any] | None, fingerprint: Fingerprint
) -> Comparison:
    """Scan the photos and compare them with the table that `record` is of."""
    has_known, archives = record is not None and not settings.restart, {}
    if record is not None and has_known and record.get("wanted") == settings.wanted.to_record():
        archives = settled_archives(read_known(settings.table, in_archives=True), fingerprint.digest, RETRYABLE)
    found = scan(settings.paths, settings.wanted, listed, archives)
    # Both in memory are the most there ever is: the table is read when the listing has been sorted.
    found.listing = sort_and_drop_repeated(found.pop_listing())
    known = read_known(settings.table) if has_known else None
    n_young = 0
    if settings.settle:
        now, settle = datetime.now(UTC), timedelta(seconds=settings.settle)
        until = now + settle  # another machine's clock may be ahead
        found.listing, n_young = hold_back(found.pop_listing(), known, now - settle, until)
    if known is None or record is None:
        return Comparison(make_plan(found.pop_listing(), None, fingerprint.digest, RETRYABLE), None, [], found, n_young)
    if not is_in_order(known):
        raise TableError(
            f"the rows of {settings.table} are not in the order label-images wrote them in; choose another --out, "
            "or label everything again with --restart"
        )
    # Rows below a folder that cannot be read now are kept: nothing says that its photos are gone. So are those
    # of a whole root that is empty, most likely since nothing is mounted there.
    roots = {display(root_of(path)) for path in settings.paths if path.is_dir()}
    empty = roots - set(pc.unique(found.listing["root"]).to_pylist()) - {root for root, _ in found.unlisted}
    places = empty_places(empty, found.inner, found.listing, found.unchanged)
    found.emptied = sorted(root for root, place in places.items() if len(rows_below(known, *place)))
    unseen = [
        rows_below(known, root, folder)
        for root, folder in [*found.unlisted, *found.unchanged, *(places[root] for root in found.emptied)]
    ]
    found.listing = pa.concat_tables([found.pop_listing(), *unseen])
    plan = make_plan(found.pop_listing(), known, fingerprint.digest, RETRYABLE)
    earlier = Fingerprint.from_record(record["fingerprint_fields"])
    stale_because = fingerprint.differences(earlier) if earlier else ["what a fingerprint holds"]
    return Comparison(plan, record, stale_because, found, n_young)


def announce(comparison: Comparison, console: Console) -> None:
    """Say what a comparison found, and what could not be looked at."""
    counts, other = comparison.plan.counts, comparison.scan.other
    text = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "found")
    if other:
        text += f"; other files left out: {other}"
    console.info("plan", text, {"counts": counts, "other_files": other.total()})
    if counts["stale"]:
        console.warn("stale", f"labelling all again, since this changed: {', '.join(comparison.stale_because)}")
    if comparison.n_young:
        console.info("settle", young_line(comparison), {"young": comparison.n_young})
    for line in repeated_lines(comparison):
        console.info("repeated", line, {"repeated": comparison.scan.n_repeated})
    for line in unlisted_lines(comparison):
        console.warn("unlisted", line)
    for line in comparison.scan.linked:
        console.warn("linked", line)


def young_line(comparison: Comparison) -> str:
    return f"left for the next run, changed too lately (--settle): {comparison.n_young:,}"


def repeated_lines(comparison: Comparison) -> list[str]:
    n = comparison.scan.n_repeated
    return [f"{n:,} images lie below several PATHs; each has one row, under the outermost"] if n else []


def unlisted_lines(comparison: Comparison) -> list[str]:
    return [
        f"cannot look into {printable(f'{root}/{folder}'.rstrip('/'))}: {reason}; rows the table has of it are kept"
        for (root, folder), reason in comparison.scan.unlisted.items()
    ] + [
        f"{printable(root)} holds no image any more, as if nothing were mounted there; the rows the table has of it "
        "are kept (--restart drops them)"
        for root in comparison.scan.emptied
    ]


def root_of(path: AnyPath) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else str(path)


def selection_of(settings: Settings, listed: bytes | None) -> dict[str, Any]:
    """What decides which files are found, as JSON gives it back."""
    return {
        "roots": sorted({root_of(path) for path in settings.paths}),
        **settings.wanted.to_record(),
        "files_from_sha256": hashlib.sha256(listed).hexdigest() if listed is not None else None,
    }


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
        obstacles.append("PATHs, --include, --exclude, --files-from or the columns of tables are others")
    if manifest.base_table not in (None, table_id):  # without one (--restart) no row of the table is needed
        obstacles.append("the table was replaced or removed meanwhile")
    return (None, obstacles) if obstacles else (manifest, [])
