"""The library: what `from pipeline import ...` gives programs. The command line is another caller.

    from pipeline import Settings, Table, label_images, word_vectors

    outcome = label_images(Settings(paths=("photos",), out="labels.parquet"))
    print(outcome.labelled, outcome.failures.errors)
    frame = Table("labels.parquet").scan(["path", "label", "probability"]).to_pandas()
    cat, dog = word_vectors(Table("embeddings"), ["cat", "dog"])

Messages are records of the stdlib loggers below `label_images` (console.py). Nothing here catches
signals, ends the process or prints.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.storage.object_store import at

from .console import Console
from .errors import TableError, UsageError
from .outcome import Outcome
from .plan.choice import ModelChoice
from .run import run
from .settings import PRECISIONS, RUNTIMES, ErrorBudget, Settings
from .table.table import Table

__all__ = ["Outcome", "Settings", "Table", "label_images", "word_vectors"]


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


def word_vectors(
    embeddings: Table, words: Sequence[str], templates: Sequence[str] = ()
) -> NDArray[np.float32]:
    """The unit vectors [W, F] of W words, in the space of embeddings that a CLIP or SigLIP made.

    The cosine between one of them and a photo's embedding says how near the two are. The words are
    read by the very model that the embeddings remember: those of another, also of the same width,
    would find any photo. Each word gets a prompt of each template, by default `a photo of a {}`;
    with `{}` it is a prompt as it stands. Each call reads the model anew, so ask for all words at
    once. Raises TableError, and vit.errors.ModelError for what the model cannot read.
    """
    # Only where it is asked for: torch takes seconds to import.
    from vit.checkpoints.locate import find_source
    from vit.checkpoints.weights import sha256_file
    from vit.text.words import word_vectors as vectors_of

    record = embeddings.record
    choice = ModelChoice.from_record(record.choice)
    if choice is None:
        raise TableError(f"{embeddings.path} does not say which model made it; run it again once")
    vectors: NDArray[np.float32] = vectors_of(choice.model, words, templates).numpy()
    weights = find_source(choice.model).weights
    if sha256_file(weights) != record.fingerprint_fields["weights_sha256"]:
        raise TableError(
            f"{weights} is not the file that {embeddings.path} was made with any more, so its "
            "words would find any photo; bring the table and the embeddings up to date first"
        )
    return vectors


def _check(settings: Settings) -> None:
    """Refuse what the command's options refuse. Raises UsageError."""
    if isinstance(settings.paths, str | os.PathLike):
        raise UsageError(f"paths are several: paths=({str(settings.paths)!r},)")
    if settings.precision not in (None, *PRECISIONS):
        raise UsageError(
            f"precision is {settings.precision!r}; choose one of {', '.join(PRECISIONS)}, or None"
        )
    if settings.runtime not in (None, *RUNTIMES):
        raise UsageError(
            f"runtime is {settings.runtime!r}; choose one of {', '.join(RUNTIMES)}, or None"
        )
    if settings.engine not in ("local", "ray"):
        raise UsageError(f"engine is {settings.engine!r}; choose local or ray")
    for name, least in (("top_k", 1), ("batch_size", 1), ("workers", 0), ("shard_size", 1)):
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or value < least):
            raise UsageError(f"{name} is {value!r}; it is a whole number from {least} up, or None")
    drift = settings.max_drift
    if drift is not None and not (type(drift) in (int, float) and 0 <= drift <= 1):
        raise UsageError(f"max_drift is {drift!r}; it is a distance from 0 to 1, or None")


def _place(path: Any) -> Any:
    return at(path) if isinstance(path, str | os.PathLike) else path
