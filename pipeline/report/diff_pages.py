"""The pages of a diff: what changed, with the photos and what both tables say of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.storage.object_store import AnyPath
from pipeline.errors import LabelImagesError

from .diff import Diff, Example, Side
from .folder import DIFF, FIRST_PAGE, ReportFolder
from .photos import COLUMNS, Best, Thumbnails, make_missing, photo_of
from .shell import Link, Site, assets, render
from .tables import OpenTable
from .write import check_place, selection_of, unwritable_as_table_error

_GALLERIES = 16  # of the most frequent changes; of 12 photos each, a page's worth
_CHANGES_NAMED = 200
_TOP = 16  # changes on the overview
_BEST = 5  # classes of a photo, of each table

PAGES = (
    Link("What changed", FIRST_PAGE),
    Link("Labels", "changes.html"),
    Link("Failures", "failures.html"),
)


@dataclass(frozen=True)
class Outcome:
    """What a table says of a photo: its label, or the code of why it has none, in `text`."""

    text: str
    probability: float | None
    best: Sequence[Best]


@dataclass(frozen=True)
class ChangedPhoto:
    """A tile of a photo whose row differs. `thumb` is where its thumbnail lies in the folder, or
    `no_thumb` says why there is none.
    """

    path: str
    old: Outcome
    new: Outcome
    thumb: str | None
    no_thumb: str
    facts: str

    @property
    def alt(self) -> str:
        return f"{self.path.rsplit('/', 1)[-1]}: {self.old.text}, now {self.new.text}"


def write_diff_pages(diff: Diff, out: AnyPath, places: Sequence[AnyPath] = ()) -> AnyPath:
    """Write the pages of a diff to the folder `out`, or replace those there; return the first one.

    `places` say how to connect to the stores that photos lie in. Raises TableError for a folder
    that has no pages of a diff and where the disk takes none, UsageError for one among the photos
    or the tables, LabelImagesError where a run has replaced a table meanwhile.
    """
    with unwritable_as_table_error(out):
        return _write_diff_pages(diff, out, places)


def _write_diff_pages(diff: Diff, out: AnyPath, places: Sequence[AnyPath]) -> AnyPath:
    check_diff_place(diff.old, diff.new, out)
    shown = [*diff.changes[:_GALLERIES], *diff.failed, *diff.mended, *diff.other_errors]
    examples = [example for change in shown for example in change.examples]
    old = _rows(diff.old, {each.old_row for each in examples})
    new = _rows(diff.new, {each.new_row for each in examples})
    for each in examples:
        if old[each.old_row]["path"] != each.path or new[each.new_row]["path"] != each.path:
            raise LabelImagesError("a run has replaced one of the tables meanwhile; do it again")
    folder = ReportFolder(out, DIFF)
    for name, data in assets().items():
        folder.write(name, data)
    thumbnails = make_missing(
        folder,
        list(new.values()),
        selection_of(diff.new.record),
        [*places, diff.new.place, diff.old.place],
    )
    pages = _Pages(diff, old, new, thumbnails)
    folder.announce(link.href for link in PAGES)
    for name, page in pages.all():
        folder.write(name, page)
    folder.finish()
    return out / FIRST_PAGE


def check_diff_place(old: Side, new: Side, out: AnyPath) -> None:
    """Refuse a folder that the pages may not be in. Raises UsageError, TableError."""
    for side in (old, new):
        check_place(out, side.place, side.record.roots, side.record.beside.values(), DIFF)


def _rows(side: Side, numbers: set[int]) -> dict[int, dict[str, Any]]:
    """Rows of a table by their numbers."""
    wanted = sorted(numbers)
    with OpenTable(side.place) as opened:
        if opened.record != side.record:
            raise LabelImagesError(f"{side.place} was replaced meanwhile; do it again")
        return dict(zip(wanted, opened.rows(wanted, (*COLUMNS, "error_code")), strict=True))


@dataclass(frozen=True)
class _Pages:
    diff: Diff
    old: Mapping[int, Mapping[str, Any]]
    new: Mapping[int, Mapping[str, Any]]
    thumbnails: Thumbnails

    @property
    def site(self) -> Site:
        sides = self.diff.old, self.diff.new
        names = [
            f"{side.place.name} ({side.record.model}, written {_when(side)} UTC)" for side in sides
        ]
        return Site(
            f"{self.diff.old.place.name} → {self.diff.new.place.name}",
            PAGES,
            f"What changed from {names[0]} to {names[1]}",
        )

    def all(self) -> Iterator[tuple[str, bytes]]:
        """Each page and its place in the folder; the first page is the last one."""
        galleries = [
            (change, self._photos(change.examples)) for change in self.diff.changes[:_GALLERIES]
        ]
        yield self._page(
            "diff_changes.html", "changes.html", "Changed labels",
            galleries=galleries, rest=self.diff.changes[_GALLERIES:_CHANGES_NAMED],
        )  # fmt: skip
        kinds = (
            ("failed", "Failed now", "They had a label before.", self.diff.failed),
            ("mended", "Mended", "They failed before, and have a label now.", self.diff.mended),
            ("other", "Failed for another reason", "They have no label in either.",
             self.diff.other_errors),
        )  # fmt: skip
        failures = [
            (anchor, title, what, [(change, self._photos(change.examples)) for change in changes])
            for anchor, title, what, changes in kinds
            if changes
        ]
        yield self._page("diff_failures.html", "failures.html", "Failures", failures=failures)
        yield self._page(
            "diff_overview.html", FIRST_PAGE, "What changed",
            top=[(change, photos[:3]) for change, photos in galleries[:_TOP]],
            n_failed=sum(change.rows for change in self.diff.failed),
            n_mended=sum(change.rows for change in self.diff.mended),
            bins=self._bins(), means=self.diff.confidence.to_record(),
            means_of_changed=self.diff.confidence_of_changed.to_record(),
            whens=(_when(self.diff.old), _when(self.diff.new)),
        )  # fmt: skip

    def _page(self, template: str, name: str, title: str, **values: Any) -> tuple[str, bytes]:
        return name, render(self.site, template, name, title, {"diff": self.diff, **values})

    def _photos(self, examples: Sequence[Example]) -> list[ChangedPhoto]:
        return [self._photo(example) for example in examples]

    def _photo(self, example: Example) -> ChangedPhoto:
        row = self.new[example.new_row]
        shown = photo_of({**row, "top_k": [], "label": "", "probability": 0.0}, self.thumbnails)
        return ChangedPhoto(
            example.path,
            _outcome(self.old[example.old_row]),
            _outcome(row),
            shown.thumb,
            shown.no_thumb,
            shown.facts,
        )

    def _bins(self) -> list[dict[str, Any]]:
        """How many rows have which confidence, in tenths: counts, and heights from 0 to 1."""
        old, new = self.diff.confidence.old_histogram, self.diff.confidence.new_histogram
        largest = max(int(old.max()), int(new.max()), 1)
        return [
            {"from": place / 10, "to": (place + 1) / 10, "old": before, "new": after,
             "heights": (before / largest, after / largest)}
            for place, (before, after) in enumerate(zip(old.tolist(), new.tolist(), strict=True))
        ]  # fmt: skip


def _outcome(row: Mapping[str, Any]) -> Outcome:
    if row["label"] is None:
        return Outcome(row["error_code"], None, [])
    best = [Best(each["label"], each["probability"]) for each in row["top_k"][:_BEST]]
    return Outcome(row["label"], row["probability"], best)


def _when(side: Side) -> str:
    return side.record.created_at.replace("T", " ").removesuffix("+00:00")
