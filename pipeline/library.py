"""The library: what `from pipeline import ...` gives programs. The command line is another caller.

    from pipeline import Settings, Table, label_images

    outcome = label_images(Settings(paths=("photos",), out="labels.parquet"))
    print(outcome.labelled, outcome.failures.errors)
    frame = Table("labels.parquet").scan(["path", "label", "probability"]).to_pandas()

Messages go to the logger `label_images`. Nothing here catches signals, ends the process or prints.
"""

import logging
import os
from dataclasses import replace
from typing import Any

from jobs.storage.object_store import at

from .console import Console
from .errors import UsageError
from .outcome import Outcome
from .run import run
from .settings import Settings
from .table.table import Table

__all__ = ["Outcome", "Settings", "Table", "label_images"]

_LOG = logging.getLogger("label_images")


class _LogConsole(Console):
    """Messages as log records, with `event` and `facts` beside the text."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def shows_bar(self) -> bool:
        return False

    def info(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        _LOG.info(message, extra={"event": event, "facts": facts or {}})

    def warn(self, event: str, message: str, facts: dict[str, Any] | None = None) -> None:
        _LOG.warning(message, extra={"event": event, "facts": facts or {}})


def label_images(settings: Settings) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos; return what was done.

    Does what the command does, from any thread. `paths`, `out` and `forget` may be text. Raises
    LabelImagesError (UsageError, TableError, ...), vit.errors.ModelError or jobs.errors.JobError
    with a message that says what to do.
    """
    if settings.out is None:
        raise UsageError("name the table: Settings(out=...)")
    out = os.fspath(settings.out) if isinstance(settings.out, os.PathLike) else settings.out
    return run(
        replace(
            settings,
            paths=tuple(map(_place, settings.paths)),
            forget=tuple(map(_place, settings.forget)),
            out=_place(out.rstrip("/") if isinstance(out, str) else out),
            is_dataset=settings.is_dataset or (isinstance(out, str) and out.endswith("/")),
        ),
        _LogConsole(),
    )


def _place(path: Any) -> Any:
    return at(path) if isinstance(path, str | os.PathLike) else path
