"""What no run can work with, refused before anything is loaded. Imports no torch."""

import os
from dataclasses import replace
from pathlib import Path

from jobs.errors import JobError
from jobs.job import Job
from jobs.storage.object_store import AnyPath, StorePath

from .errors import TableError, UsageError
from .settings import Settings

# File systems take 255 bytes; what stands beside the table is called .NAME.job, and NAME.tmp.
_LONGEST_NAME = 240
# The first line of a file of --metrics: others are not replaced.
METRICS_MARK = "# Written by label-images --metrics."


def check_paths(settings: Settings) -> Settings:
    """Refuse what no run can work with, before anything is loaded. Raises UsageError.

    Return the settings as the disk has them: where --out is a table of many files already, it is
    meant without a slash at the end, too.
    """
    if not settings.paths and settings.files_from is None:
        raise UsageError(
            "name at least one folder or file of photos, or a list of them with --files-from"
        )
    if settings.max_runtime == 0:
        raise UsageError("--max-runtime 0 leaves no time to label; leave it out, or allow some")
    for path in settings.paths:
        if isinstance(path, Path) and not os.path.lexists(path):
            raise UsageError(f"{path} does not exist; name folders or files of photos")
    out = settings.out
    if isinstance(out, Path) and len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise UsageError(f"--out {out}: a name of more than {_LONGEST_NAME} bytes is too long")
    if settings.report is not None and out is None:
        raise UsageError(
            "--report goes with a table: name one with --out; of a table that is there, "
            "label-images report TABLE makes it"
        )
    for place in (*settings.paths, out, settings.embeddings, settings.report):
        if isinstance(place, StorePath):
            try:
                place.fs  # noqa: B018 - connects
            except JobError as error:
                raise UsageError(str(error)) from error
    if isinstance(out, Path) and out.is_dir() and Job(out).index_path.is_file():
        settings = replace(settings, is_dataset=True)
    if out is not None and not settings.is_dataset and out.is_dir():
        raise TableError(
            f"--out {out} is a folder; name a file in it, such as {out}/labels.parquet, or write "
            f"{out}/ for a table of many files"
        )
    if settings.embeddings is not None:
        _check_embeddings(settings, settings.embeddings)
    if obstacle := metrics_obstacle(settings):
        raise UsageError(obstacle)
    if out is not None and settings.is_dataset and out.is_file():
        raise TableError(f"--out {out}/ is a file; a table of many files needs a name of its own")
    if isinstance(out, Path) and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    return settings


def _check_embeddings(settings: Settings, embeddings: AnyPath) -> None:
    if settings.out is None:
        raise UsageError("--embeddings go with a table: name one with --out")
    if isinstance(embeddings, Path) and len(os.fsencode(embeddings.name)) > _LONGEST_NAME:
        raise UsageError(
            f"--embeddings {embeddings}: a name of more than {_LONGEST_NAME} bytes is too long"
        )
    if isinstance(embeddings, Path) and embeddings.is_symlink() and not embeddings.exists():
        raise UsageError(f"--embeddings {embeddings} is a link that leads nowhere; name a folder")
    if _same_place(embeddings, settings.out):
        raise UsageError(f"--embeddings and --out are both {embeddings}; each needs its own place")
    if embeddings.is_file():
        raise UsageError(f"--embeddings {embeddings} is a file; name a folder")
    if isinstance(embeddings, Path) and not embeddings.parent.is_dir():
        raise UsageError(
            f"--embeddings {embeddings}: there is no folder {embeddings.parent}; make it first"
        )


def metrics_obstacle(settings: Settings) -> str | None:
    """Why no metrics can be written where the command says; None where they can, or need not."""
    path = settings.metrics
    if path is None:
        return None
    if settings.out is None:
        return "--metrics go with a table: name one with --out"
    if not path.parent.is_dir():
        return f"--metrics {path}: there is no folder {path.parent}; make it first"
    if path.is_dir():
        return f"--metrics {path} is a folder; name a file, such as {path}/label_images.prom"
    if _same_place(path, settings.out):
        return f"--metrics and --out are both {path}; each needs its own place"
    try:
        with path.open("rb") as file:
            is_ours = file.read(len(METRICS_MARK)) == METRICS_MARK.encode()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"--metrics {path} cannot be read: {error.strerror}"
    if is_ours or not path.stat().st_size:
        return None
    return f"--metrics {path} holds something that --metrics did not write; name another file"


def _same_place(one: AnyPath, other: AnyPath) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return os.path.realpath(one) == os.path.realpath(other)
    return one == other
