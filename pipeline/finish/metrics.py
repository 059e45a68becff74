"""What a run leaves for Prometheus (--metrics FILE): a text file for node_exporter's textfile
collector, about the last run on one table.

Written by one rename at the end of each run, also of one that fails, and then without what only a
finished run knows. A run that is killed, or refused for its options before it begins, leaves the
file of the run before: its time stays behind.
docs/monitoring.md lists the metrics.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from jobs.storage.atomic import write_bytes
from pipeline.console import Console
from pipeline.errors import exit_code_of
from pipeline.outcome import Outcome
from pipeline.preflight import METRICS_MARK, metrics_obstacle
from pipeline.settings import Settings

# Name (after label_images_), what it says, and samples of it: labels and value.
_Metric = tuple[str, str, list[tuple[dict[str, str], float]]]
_SUCCESS = "last_success_timestamp_seconds"


def with_metrics(settings: Settings, console: Console, do: Callable[[], Outcome]) -> Outcome:
    """Do a run, and write its metrics however it ends, if they are asked for."""
    path, started = settings.metrics, time.perf_counter()
    if path is None:
        return do()
    if path.suffix != ".prom":
        text = f"--metrics {path}: node_exporter reads only names that end in .prom"
        console.warn("metrics", f"{text}; call it {path.name}.prom, where that is to read it")
    try:
        outcome = do()
    except BaseException as error:
        # Nothing that fails here may hide what went wrong.
        with suppress(Exception):
            seconds = time.perf_counter() - started
            _write(path, settings, exit_code_of(error), seconds, None)
        raise
    try:
        seconds = time.perf_counter() - started
        _write(path, settings, outcome.exit_code(settings.max_errors), seconds, outcome)
    except OSError as error:
        # The table is written, and that is what the exit code says.
        console.warn("metrics", f"--metrics {path} could not be written: {error.strerror or error}")
    return outcome


def _write(
    path: Path, settings: Settings, exit_code: int, seconds: float, outcome: Outcome | None
) -> None:
    if metrics_obstacle(settings):
        return  # the run has said so
    table = str(settings.table)
    table = os.path.abspath(table) if isinstance(settings.table, Path) else table
    now = time.time()
    success = now if exit_code == 0 else _last_success(path, table)
    metrics = [*_of_any_run(exit_code, now, seconds, success), *(_of(outcome) if outcome else ())]
    write_bytes(path, "".join(_lines(metrics, table)).encode())


def _of_any_run(
    exit_code: int, now: float, seconds: float, success: float | None
) -> Iterator[_Metric]:
    yield "build_info", "The version that ran last.", [({"version": version("label-images")}, 1)]
    yield "last_run_exit_status", "Exit code of the last run.", [({}, exit_code)]
    yield "last_run_timestamp_seconds", "When the last run ended.", [({}, round(now, 3))]
    yield "last_run_duration_seconds", "How long the last run took.", [({}, round(seconds, 3))]
    samples: list[tuple[dict[str, str], float]] = (
        [] if success is None else [({}, round(success, 3))]
    )
    yield _SUCCESS, "When a run last ended with exit code 0.", samples


def _of(outcome: Outcome) -> Iterator[_Metric]:
    counts = outcome.to_record()["counts"]
    by_outcome = ("labelled", "reused", "failed", "relabelled", "carried")
    yield (
        "last_run_images",
        "Images that the last run found, by what became of them.",
        [({"outcome": name}, counts.get(name, 0)) for name in by_outcome],
    )
    yield (
        "last_run_rows_gone",
        "Rows that left the table in the last run.",
        [({}, counts.get("gone", 0))],
    )
    yield (
        "last_run_rows_unseen",
        "Rows kept of what the last run could not look at.",
        [({}, outcome.unseen_rows)],
    )
    yield "table_rows", "Rows of the table.", [({}, counts["found"] + outcome.unseen_rows)]
    yield (
        "table_failed_rows",
        "Failed rows of the table, by error code.",
        [({"error_code": code}, rows) for code, rows in outcome.errors.items()],
    )
    yield (
        "last_run_images_per_second",
        "Images that the last run labelled a second.",
        [({}, round(outcome.images / outcome.seconds, 3))] if outcome.images else [],
    )
    yield (
        "last_run_stage_images_per_second",
        "Images a second that each stage of the last run could do alone.",
        [({"stage": stage}, rate) for stage, rate in outcome.rates.items()],
    )
    if drift := outcome.drift:
        for name, text, value in (
            ("distance", "Jensen-Shannon distance of the new photos' class mix.", drift.distance),
            ("by_chance", "What that distance stays below by chance.", drift.by_chance),
        ):
            yield f"last_run_drift_{name}", text, [] if value is None else [({}, round(value, 6))]
        means = {"new": drift.new_mean_probability, "earlier": drift.earlier_mean_probability}
        yield (
            "last_run_mean_probability",
            "Mean probability of the best class, of photos that were new and of those before.",
            [({"rows": of}, round(mean, 6)) for of, mean in means.items() if mean is not None],
        )


def _lines(metrics: list[_Metric], table: str) -> Iterator[str]:
    yield f"{METRICS_MARK}\n"
    for name, text, samples in metrics:
        if samples:
            yield f"# HELP label_images_{name} {text}\n# TYPE label_images_{name} gauge\n"
        for labels, value in samples:
            said = ",".join(
                f'{key}="{_escaped(each)}"' for key, each in {"table": table, **labels}.items()
            )
            yield f"label_images_{name}{{{said}}} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _last_success(path: Path, table: str) -> float | None:
    """When a run on this table last went well, as the file of before says."""
    with suppress(OSError, ValueError):
        labels = re.escape(f'{{table="{_escaped(table)}"}}')
        match = re.search(rf"^label_images_{_SUCCESS}{labels} (\S+)$", path.read_text(), re.M)
        return float(match[1]) if match else None
    return None
