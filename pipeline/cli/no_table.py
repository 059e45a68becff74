"""What a command that looks at a table was given instead of one, and what to pass then."""

import re
from collections.abc import Iterator
from itertools import islice

from jobs.job import Job
from jobs.storage.object_store import AnyPath, job_folder
from jobs.table_index import number_of
from pipeline.errors import UsageError

_JOB_FOLDER = re.compile(r"\.(.+)\.job")
_TABLES_SHOWN = 3


def refuse_what_is_no_table(place: AnyPath, command: str) -> None:
    """Raise UsageError for a job folder, a folder of photos, or a name with nothing under it.

    What may have been a table is let through, to be judged by what is in it.
    """
    for folder in (place, place.parent):  # parts and receipts lie in one
        match = _JOB_FOLDER.fullmatch(folder.name)
        if match and folder.is_dir():
            raise UsageError(
                f"{place} is no table: {folder.name} is the folder of the work on one; pass the "
                f"table itself: label-images {command} {folder.with_name(match[1])}"
            )
    if not place.is_dir():
        if not place.exists() and not Job(place).folder.exists():
            raise UsageError(
                f"there is no table at {place}, and no job beside it; is its name right?"
            )
        return
    if job_folder(place).is_dir() or any(number_of(path.name) >= 0 for path in place.iterdir()):
        return
    tables = list(islice(_tables_in(place), _TABLES_SHOWN))
    advice = (
        " or ".join(f"label-images {command} {table}" for table in tables)
        or f"label-images {command} TABLE, the one that a run named with --out"
    )
    raise UsageError(f"{place} is a folder, and no table of label-images; pass the table: {advice}")


def _tables_in(folder: AnyPath) -> Iterator[AnyPath]:
    """The tables right below a folder, which have a job folder beside them."""
    for path in folder.iterdir():
        match = _JOB_FOLDER.fullmatch(path.name)
        if match and path.with_name(match[1]).exists():
            yield path.with_name(match[1])
