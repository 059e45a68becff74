"""The job behind a table: what is done, pending and failed, and how the last runs ended
(`label-images status`).
"""

from collections.abc import Iterator
from typing import Any

from jobs.job import Job
from jobs.receipts import count_failures
from jobs.storage.object_store import AnyPath
from pipeline.errors import UsageError
from pipeline.so_many import so_many
from pipeline.table.table import read_record

_RUNS_SHOWN = 10
_MESSAGE_SHOWN = 90  # characters, of what ended a run early
_TABLE = (
    "model",
    "fingerprint",
    "precision",
    "device",
    "run_id",
    "tool_version",
    "roots",
    "counts",
    "choice",
    "made_by",
    "beside",
)


def read_status(out: AnyPath) -> dict[str, Any]:
    """Read what table, job folder and last runs say (docs/programs.md).

    Raises UsageError where there is nothing.
    """
    job = Job(out)
    record, manifest = read_record(out), job.manifest
    runs = job.history()
    if record is None and manifest is None and not runs:
        raise UsageError(f"there is no table at {out}, and no job beside it")
    unfinished = None
    if manifest and job.has_plan and not (record and record.plan_id == manifest.plan_id):
        receipts = job.receipts(manifest)
        unfinished = {
            "model": manifest.model,
            "planned_at": manifest.created_at,
            "images": manifest.n_images,
            "done": sum(receipt.rows for receipt in receipts.values()),
            "shards": manifest.n_shards,
            "shards_done": len(receipts),
            "errors": count_failures(receipts.values()),
        }
    table = None
    if record:
        said = record.to_json()
        table = {name: said[name] for name in _TABLE} | {"written_at": record.created_at}
    return {
        "out": str(out),
        "table": table,
        "unfinished": unfinished,
        "table_run": job.read_run(),
        "runs": runs,
    }


def status_lines(status: dict[str, Any]) -> Iterator[str]:
    """Say it in words."""
    table, unfinished, table_run = status["table"], status["unfinished"], status["table_run"]
    if table:
        counts = table["counts"]
        failed = ", ".join(f"{code} {count:,}" for code, count in counts["errors"].items())
        yield (
            f"table     {so_many(counts['rows'], 'row')}, {counts['ok']:,} labelled, "
            f"{counts['rows'] - counts['ok']:,} failed" + (f" ({failed})" if failed else "")
        )
        yield f"model     {table['model']}, {table['precision']} on {table['device']}"
        yield (
            f"written   {table['written_at']} by run {table['run_id']}, label-images "
            f"{table['tool_version']}"
        )
        yield f"photos    {', '.join(table['roots']) or 'from a list'}"
        for name, place in table["beside"].items():
            yield f"beside    {name} in {place}"
    else:
        yield "table     not written yet"
    if unfinished:
        done, n_images = unfinished["done"], unfinished["images"]
        yield (
            f"job       unfinished: {done:,} of {n_images:,} images done, {n_images - done:,} "
            f"pending ({unfinished['shards_done']:,} of {unfinished['shards']:,} shards); run the "
            "same command to go on"
        )
        if unfinished["errors"]:
            yield (
                "          failed so far: "
                f"{', '.join(f'{code} {n:,}' for code, n in unfinished['errors'].items())}"
            )
    else:
        yield "job       nothing pending"
    if table_run and table_run["rates"]:
        rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in table_run["rates"].items())
        yield f"rates     images/s: {rates}"
    yield from _history(status["runs"])


def _history(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The last run in words, and the last ones a line each, the newest first."""
    if not runs:
        return
    last = runs[-1]
    yield (
        f"last run  {last['finished_at']}, exit code {last['exit_code']}, {last['seconds']:.1f} "
        f"s: {last['message']}"
    )
    yield "runs      finished            exit   labelled     failed  images/s  mean p   drift"
    for run in reversed(runs[-_RUNS_SHOWN:]):
        line = f"          {run['finished_at'][:19].replace('T', ' ')}  {run['exit_code']:>3}"
        if "counts" not in run:
            message = " ".join(run["message"].split())
            is_long = len(message) > _MESSAGE_SHOWN
            yield f"{line}  {message[:_MESSAGE_SHOWN]}{'...' if is_long else ''}"
            continue
        counts, drift = run["counts"], run.get("drift") or {}  # of runs before there was one
        yield (
            f"{line} {counts['labelled']:>10,} {counts['failed']:>10,}"
            + _cell(run["images_per_s"], 10, ",.1f")
            + _cell(drift.get("new_mean_probability"), 8, ".3f")
            + _cell(drift.get("distance"), 8, ".3f")
        )


def _cell(value: float | None, width: int, format_: str) -> str:
    """A number in its column, or a dash where there is none."""
    return f"{'-' if value is None else format(value, format_):>{width}}"
