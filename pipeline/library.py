"""The library: what `from pipeline import ...` gives programs. The command line is another caller.

    from pipeline import Settings, Table, label_images

    outcome = label_images(Settings(paths=("photos",), out="labels.parquet"))
    print(outcome.labelled, outcome.failures.errors)
    frame = Table("labels.parquet").scan(["path", "label", "probability"]).to_pandas()

Messages are records of the stdlib loggers below `label_images` (console.py). Nothing here catches
signals, ends the process or prints.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.storage.object_store import at

from .console import Console
from .errors import UsageError
from .outcome import Outcome
from .run import run
from .settings import PRECISIONS, ErrorBudget, Settings
from .table.table import Table

__all__ = ["Outcome", "Settings", "Table", "label_images"]


def label_images(settings: Settings) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos; return what was done.

    Does what the command does, from any thread. `paths`, `out`, `embeddings`, `report`, `metrics`,
    `forget` and `max_errors` (20, 5%) may be text. Raises LabelImagesError (UsageError, TableError, ...),
    vit.errors.ModelError or jobs.errors.JobError with a message that says what to do.
    """
    if settings.out is None:
        raise UsageError("name the table: Settings(out=...)")
    _check(settings)
    budget = settings.max_errors
    out = os.fspath(settings.out) if isinstance(settings.out, os.PathLike) else settings.out
    return run(
        replace(
            settings,
            paths=tuple(map(_place, settings.paths)),
            forget=tuple(map(_place, settings.forget)),
            out=_place(out.rstrip("/") if isinstance(out, str) else out),
            embeddings=_place(settings.embeddings),
            metrics=None if settings.metrics is None else Path(settings.metrics),
            report=_place(settings.report),
            max_errors=ErrorBudget.parse(budget) if isinstance(budget, str) else budget,
            is_dataset=settings.is_dataset or (isinstance(out, str) and out.endswith("/")),
        ),
        Console(),
    )


def _check(settings: Settings) -> None:
    """Refuse what the command's options refuse. Raises UsageError."""
    if isinstance(settings.paths, str | os.PathLike):
        raise UsageError(f"paths are several: paths=({str(settings.paths)!r},)")
    if settings.precision not in (None, *PRECISIONS):
        raise UsageError(
            f"precision is {settings.precision!r}; choose one of {', '.join(PRECISIONS)}, or None"
        )
    for name, least in (("top_k", 1), ("batch_size", 1), ("workers", 0), ("shard_size", 1)):
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or value < least):
            raise UsageError(f"{name} is {value!r}; it is a whole number from {least} up, or None")
    drift = settings.max_drift
    if drift is not None and not (type(drift) in (int, float) and 0 <= drift <= 1):
        raise UsageError(f"max_drift is {drift!r}; it is a distance from 0 to 1, or None")


def _place(path: Any) -> Any:
    return at(path) if isinstance(path, str | os.PathLike) else path
