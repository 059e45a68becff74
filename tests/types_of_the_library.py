"""The library's types, as a program's type checker sees them: mypy reads this (setup.cfg), nothing
runs it.

The documented calls pass, and what they give has a type of its own: one that fell back to Any would
go through every check unseen.
"""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from pipeline import Outcome, Settings, Table, label_images, word_vectors
from pipeline.settings import ErrorBudget
from pipeline.table.record import TableRecord


def _places_may_be_text() -> None:
    settings = Settings(
        paths=("photos", Path("more")), out="s3://bucket/labels.parquet", embeddings="embeddings",
        report="report", metrics="labels.prom", forget=["old"], max_errors="5%",
    )  # fmt: skip
    assert_type(settings.max_errors, ErrorBudget)
    assert_type(settings.metrics, Path | None)
    assert_type(settings.top_k, int | None)
    outcome = label_images(settings)
    assert_type(outcome, Outcome)
    assert_type(outcome.labelled, int)
    assert_type(outcome.failures.errors, dict[str, int])


def _a_table_says_what_it_is() -> None:
    assert_type(Table("labels.parquet").record, TableRecord)
    assert_type(word_vectors(Table("embeddings"), ["cat"]), NDArray[np.float32])


def _what_is_wrong_is_told() -> None:
    # An ignore that hides nothing is an error of mypy's strict mode.
    Settings(paths=("photos",), out=3)  # type: ignore[arg-type]
    Settings(top_k="5")  # type: ignore[arg-type]
    label_images("photos")  # type: ignore[arg-type]
