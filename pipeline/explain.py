"""Jobs in words: what a run would do (`label-images plan`), and what was done (`label-images status`)."""

from collections.abc import Iterator

from jobs.job import Job
from jobs.receipts import count_failures
from jobs.store import AnyPath

from .checks import check_paths
from .errors import UsageError
from .filelist import read_list
from .prepare import compare, find_unfinished, read_table, repeated_lines, selection_of, unlisted_lines, young_line
from .progress import Console
from .settings import Settings
from .tables import read_record


def plan_lines(settings: Settings) -> Iterator[str]:
    """Say what a run with these settings would do, and why; writes nothing and holds no lock."""
    if settings.out is None:
        raise UsageError("plan compares photos with a table; name it with --out (it need not exist yet)")
    check_paths(settings)
    record = read_table(settings)
    from .machine import Machine  # takes seconds to import, which `status` needs not wait for

    identity = Machine(settings).identity
    Console(settings.quiet, settings.log_json).info("model", identity.describe())
    fingerprint = identity.fingerprint
    listed = read_list(settings.files_from)
    job = Job(settings.out)
    if not settings.restart:
        manifest, obstacles = find_unfinished(job, record, fingerprint, selection_of(settings, listed))
        if manifest:
            done = sum(receipt.rows for receipt in job.receipts(manifest).values())
            yield f"go on with the unfinished job: {done:,} of {manifest.n_images:,} images are done already"
            return
        if obstacles:
            yield f"the unfinished job cannot go on: {'; '.join(obstacles)}"
    comparison = compare(settings, listed, record, fingerprint)
    counts = comparison.plan.counts
    meanings = {
        "found": "images found",
        "new": "to label: not in the table",
        "changed": "to label: size or time changed",
        "stale": "to label: the model or a setting changed",
        "retry": "to label: failed before, for a reason that may have passed",
        "carried": "carried over as they are",
        "gone": "rows to drop: no such image any more",
    }
    for name, meaning in meanings.items():
        yield f"{counts[name]:12,}  {name:<8} {meaning}"
    if counts["stale"]:
        yield f"stale because of {', '.join(comparison.stale_because)}"
    if comparison.scan.other:
        yield f"other files left out: {comparison.scan.other}"
    if comparison.n_young:
        yield young_line(comparison)
    yield from (*repeated_lines(comparison), *unlisted_lines(comparison), *comparison.scan.linked)


def status_lines(out: AnyPath) -> Iterator[str]:
    """Yield what table, job folder and last run say. Raises UsageError where there is nothing."""
    job = Job(out)
    record, manifest, last_run = read_record(out), job.manifest, job.read_run()
    if record is None and manifest is None:
        raise UsageError(f"there is no table at {out}, and no job beside it")
    if record:
        counts = record["counts"]
        failed = ", ".join(f"{code} {count:,}" for code, count in counts["errors"].items())
        yield (
            f"table     {counts['rows']:,} rows, {counts['ok']:,} labelled, {counts['rows'] - counts['ok']:,} failed"
            + (f" ({failed})" if failed else "")
        )
        yield f"model     {record['model']}, {record['precision']} on {record['device']}"
        yield f"written   {record['created_at']} by run {record['run_id']}, label-images {record['tool_version']}"
        yield f"photos    {', '.join(record['roots']) or 'from a list'}"
    else:
        yield "table     not written yet"
    if manifest and job.has_plan and not (record and record["plan_id"] == manifest.plan_id):
        receipts = job.receipts(manifest)
        done = sum(receipt.rows for receipt in receipts.values())
        failures = ", ".join(f"{code} {count:,}" for code, count in count_failures(receipts.values()).items())
        yield (
            f"job       unfinished: {done:,} of {manifest.n_images:,} images done, {manifest.n_images - done:,} "
            f"pending ({len(receipts):,} of {manifest.n_shards:,} shards); run the same command to go on"
        )
        if failures:
            yield f"          failed so far: {failures}"
    else:
        yield "job       nothing pending"
    if last_run:
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in last_run["rates"].items())
        yield f"last run  {last_run['finished_at']}, {last_run['seconds']:.1f} s" + (
            f"; images/s: {rates}" if rates else ""
        )
