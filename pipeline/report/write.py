"""A table's report, from the table to the folder of pages."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from jobs.job import Job
from jobs.storage.object_store import AnyPath, is_uri
from pipeline.errors import TableError, UsageError
from pipeline.find.selection import Selection
from pipeline.path_names import unescape_name
from pipeline.settings import DEFAULT_REPORT_PHOTOS
from pipeline.so_many import so_many
from pipeline.table.record import TableRecord

from .counted import count
from .folder import FIRST_PAGE, REPORT, ReportFolder, check_folder
from .pages import MOST_FOLDERS, PAGE_PHOTOS, Report, choose, labels_of
from .photos import COLUMNS, make_missing
from .shell import assets
from .tables import OpenTable


@dataclass(frozen=True)
class Written:
    """What a report became: photos shown, thumbnails made now, and those that are missing, by code."""

    first_page: AnyPath
    rows: int
    labels: int
    photos: int
    made: int
    missing: dict[str, int]

    def line(self) -> str:
        missing = ", ".join(f"{code} {n:,}" for code, n in self.missing.items())
        return (
            f"report of {so_many(self.rows, 'row')}: {so_many(self.labels, 'label')}, "
            f"{so_many(self.photos, 'photo')} shown, {so_many(self.made, 'thumbnail')} made"
            + (f", {sum(self.missing.values()):,} without ({missing})" if missing else "")
            + f" -> {self.first_page}"
        )


def write_report(
    table: AnyPath,
    out: AnyPath,
    places: Sequence[AnyPath] = (),
    n_photos: int = DEFAULT_REPORT_PHOTOS,
) -> Written:
    """Write a table's report to the folder `out`, or bring it up to date.

    `places` say how to connect to the stores that photos lie in; `n_photos` is about how many are
    shown. Raises TableError for what is no table, for a folder that is no report and where the disk
    takes none, UsageError for one among the photos.
    """
    with unwritable_as_table_error(out):
        return _write_report(table, out, places, n_photos)


def _write_report(
    table: AnyPath, out: AnyPath, places: Sequence[AnyPath], n_photos: int
) -> Written:
    with OpenTable(table) as opened:
        record = opened.record
        check_place(out, table, record.roots, record.beside.values())
        is_sigmoid = record.fingerprint_fields.get("activation") == "sigmoid"
        counted = count(opened, len(opened.classes), is_sigmoid, PAGE_PHOTOS, MOST_FOLDERS)
        labels = labels_of(counted, opened.classes)
        chosen = choose(counted, labels, n_photos)
        numbers = chosen.numbers
        rows = dict(zip(numbers, opened.rows(numbers, COLUMNS), strict=True))
    folder = ReportFolder(out)
    for name, data in assets().items():
        folder.write(name, data)
    thumbnails = make_missing(folder, list(rows.values()), selection_of(record), [*places, table])
    report = Report(
        table.name, record, len(opened.classes), opened.classes, counted, labels, chosen, rows,
        thumbnails, Job(table).history(),
    )  # fmt: skip
    folder.announce(report.names())
    for name, page in report.pages():
        folder.write(name, page)
    folder.finish()
    return Written(
        out / FIRST_PAGE, counted.rows, len(labels), len(numbers), thumbnails.made,
        dict(thumbnails.missing),
    )  # fmt: skip


@contextmanager
def unwritable_as_table_error(out: AnyPath) -> Iterator[None]:
    """Let whatever disk or store refuse while pages are made be a TableError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"the pages in {out} cannot be made: {error}") from error


def check_place(
    out: AnyPath,
    table: AnyPath,
    roots: Iterable[str],
    beside: Iterable[str] = (),
    kind: str = REPORT,
) -> None:
    """Refuse a folder that pages of a `kind` may not be in: one that is not ours, the table itself
    or what lies `beside` it, or one among the photos, where the next run would take thumbnails for
    photos.

    `roots` are names as the table has them (path_names.display). Links are followed: a folder is
    where it leads to, and where it is named, too, since a run follows links as well.
    """
    with unwritable_as_table_error(out):
        places = _names_of(str(out))
        tables = [place for name in (table, Job(table).folder) for place in _names_of(str(name))]
        if _is_in(places, tables):
            raise UsageError(f"{out} is where the table lies; name another folder for the report")
        for name in beside:
            if _is_in(places, _names_of(name)):
                raise UsageError(
                    f"{out} is where the table's embeddings lie; name another folder for the report"
                )
        for root in roots:
            if _is_in(places, _names_of(os.fsdecode(unescape_name(root)))):
                raise UsageError(
                    f"{out} lies among the photos, in {root}: the next run would label the "
                    "report's thumbnails; name a folder beside it"
                )
        if isinstance(out, Path) and not os.path.lexists(out) and not out.parent.is_dir():
            raise UsageError(f"{out.parent} does not exist; make it first")
        check_folder(out, kind)


def _names_of(place: str) -> set[str]:
    """A place as it is named, and as links lead to it."""
    return {place} if is_uri(place) else {os.path.abspath(place), os.path.realpath(place)}


def _is_in(places: Iterable[str], others: Iterable[str]) -> bool:
    """Whether any of the places is one of the others, or lies in it."""
    folders = [other.rstrip("/") for other in others]
    return any(f"{place}/".startswith(f"{folder}/") for place in places for folder in folders)


def selection_of(record: TableRecord) -> Selection:
    """What decides where the photos of rows are; of a table of before, which has no selection, all
    lie in files.
    """
    said = record.selection or {}
    return Selection(image_column=said.get("image_column"), key_column=said.get("key_column"))
