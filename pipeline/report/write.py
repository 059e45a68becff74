"""A table's report, from the table to the folder of pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.job import Job
from jobs.storage.object_store import AnyPath
from pipeline.errors import UsageError
from pipeline.find.scan import root_of
from pipeline.find.selection import Selection
from pipeline.settings import DEFAULT_REPORT_PHOTOS
from pipeline.table.record import TableRecord

from .counted import count
from .folder import FIRST_PAGE, ReportFolder, check_folder
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
            f"report of {self.rows:,} rows: {self.labels:,} labels, {self.photos:,} photos shown, "
            f"{self.made:,} thumbnails made"
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
    shown. Raises TableError for what is no table and for a folder that is no report, UsageError for
    one among the photos.
    """
    with OpenTable(table) as opened:
        record = opened.record
        check_place(out, table, record.roots)
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


def check_place(out: AnyPath, table: AnyPath, roots: Sequence[str]) -> None:
    """Refuse a folder that a report may not be in: one that is not ours, the table itself, or one
    among the photos, where the next run would take thumbnails for photos.
    """
    place = root_of(out)
    for taken in (table, Job(table).folder):
        if place == root_of(taken) or place.startswith(f"{root_of(taken)}/"):
            raise UsageError(f"{out} is where the table lies; name another folder for the report")
    for root in roots:
        if place == root or place.startswith(f"{root.rstrip('/')}/"):
            raise UsageError(
                f"{out} lies among the photos, in {root}: the next run would label the report's "
                "thumbnails; name a folder beside it"
            )
    if isinstance(out, Path) and not out.is_dir() and not out.parent.is_dir():
        raise UsageError(f"{out.parent} does not exist; make it first")
    check_folder(out)


def selection_of(record: TableRecord) -> Selection:
    """What decides where the photos of rows are; of a table of before, which has no selection, all
    lie in files.
    """
    said = record.selection or {}
    return Selection(image_column=said.get("image_column"), key_column=said.get("key_column"))
