"""The pages of a report: what each says, from counts, chosen rows and what the table says of itself.

Pure: reads and writes no files. A page of photos holds PAGE_PHOTOS at most, a page of names so many
that it stays below a megabyte.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.failures import ERROR_CODES, RETRYABLE
from pipeline.table.record import TableRecord

from .advice import ADVICE, ENDED
from .counted import DOUBTFUL_MARGIN, N_BINS, Counted
from .photos import Photo, Thumbnails, photo_of
from .shell import Link, Site, render

PAGE_PHOTOS = 200
MOST_LABEL_PAGES = 2_000
MOST_FOLDERS = 1_000
_NAMES_A_PAGE = 4_000  # of labels that have no page of their own
_TOP_LABELS, _STRIP, _RUNS = 16, 6, 14

PAGES = (
    Link("Overview", "index.html"),
    Link("Labels", "labels.html"),
    Link("Doubtful", "doubtful.html"),
    Link("Failures", "failures.html"),
    Link("Folders", "folders.html"),
)


@dataclass(frozen=True)
class Label:
    """A class that photos have as their best. `href` is None for one without a page."""

    class_id: int
    name: str
    count: int
    mean: float
    href: str | None
    share: float  # of the most frequent label's count


@dataclass(frozen=True)
class Chosen:
    """The rows to show, by number: of each label with a page the most certain, and the least certain
    where not all are shown.
    """

    most: Mapping[int, Sequence[int]]
    least: Mapping[int, Sequence[int]]
    doubtful: Sequence[int]

    @property
    def numbers(self) -> list[int]:
        """All of them, ascending."""
        of_labels = (*self.most.values(), *self.least.values())
        return sorted({*self.doubtful, *(number for numbers in of_labels for number in numbers)})


def labels_of(counted: Counted, classes: Sequence[str]) -> list[Label]:
    """The labels that occur, the most frequent first."""
    present = [int(each) for each in counted.by_class.nonzero()[0]]
    present.sort(key=lambda class_id: (-counted.by_class[class_id], class_id))
    largest = int(counted.by_class.max(initial=1))
    return [
        Label(
            class_id,
            classes[class_id],
            count := int(counted.by_class[class_id]),
            float(counted.sums[class_id]) / count,
            f"labels/{page_name(class_id, classes[class_id])}"
            if place < MOST_LABEL_PAGES
            else None,
            count / largest,
        )
        for place, class_id in enumerate(present)
    ]


def page_name(class_id: int, label: str) -> str:
    """A label's file: by its number, with as much of its name as is safe in any address."""
    words = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40].strip("-")
    return f"{class_id}-{words}.html" if words else f"{class_id}.html"


def choose(counted: Counted, labels: Sequence[Label], n_photos: int) -> Chosen:
    """Choose which rows are shown: about `n_photos` in all, as many of each label as there is room
    for, and never more than a page holds. Each label with a page shows two, whatever `n_photos`:
    MOST_LABEL_PAGES bound that.
    """
    paged = [label for label in labels if label.href]
    each = PAGE_PHOTOS
    while each > 2 and sum(min(label.count, each) for label in paged) > n_photos:
        each -= 2
    most, least = dict[int, Sequence[int]](), dict[int, Sequence[int]]()
    for label in paged:
        if label.count <= each:
            most[label.class_id] = counted.most.of(label.class_id, each)
            continue
        most[label.class_id] = counted.most.of(label.class_id, each // 2)
        least[label.class_id] = counted.least.of(label.class_id, each // 2)
    return Chosen(most, least, counted.doubtful[: min(PAGE_PHOTOS, n_photos)])


@dataclass(frozen=True)
class Report:
    """All that the pages are made of. `rows` are the chosen ones by number (photos.COLUMNS), `runs`
    the history of the table's job, the last one at the end.
    """

    name: str
    record: TableRecord
    n_classes: int
    classes: Sequence[str]
    counted: Counted
    labels: Sequence[Label]
    chosen: Chosen
    rows: Mapping[int, Mapping[str, Any]]
    thumbnails: Thumbnails
    runs: Sequence[Mapping[str, Any]]

    @property
    def site(self) -> Site:
        when = self.record.created_at.replace("T", " ").removesuffix("+00:00")
        return Site(
            self.name,
            PAGES,
            f"{self.name}, written {when} UTC by label-images {self.record.tool_version} with "
            f"{self.record.model}",
        )

    @property
    def is_sigmoid(self) -> bool:
        return bool(self.record.fingerprint_fields.get("activation") == "sigmoid")

    def photos(self, numbers: Sequence[int]) -> list[Photo]:
        return [photo_of(self.rows[number], self.thumbnails) for number in numbers]

    def names(self) -> Iterator[str]:
        """Where each page lies in the folder; index.html is the last."""
        yield from (label.href for label in self.labels if label.href)
        yield from (f"labels-{place}.html" for place, _ in self._more_labels())
        yield from (link.href for link in reversed(PAGES))

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """Each page, in the order of `names`."""
        for label in self.labels:
            if label.href:
                yield label.href, self._label_page(label)
        more = list(self._more_labels())
        for place, labels in more:
            title = f"Labels, page {place}"
            yield self._page("rare.html", f"labels-{place}.html", title, {"labels": labels})
        yield self._page("folders.html", "folders.html", "Folders", self._folders())
        yield self._page("failures.html", "failures.html", "Failures", self._failures())
        photos = self.photos(self.chosen.doubtful)
        doubtful = {"photos": photos, **self._doubt()}
        yield self._page("doubtful.html", "doubtful.html", "Doubtful", doubtful)
        pages = [(place, len(labels)) for place, labels in more]
        paged = [label for label in self.labels if label.href]
        values = {"labels": paged, "more": pages, "n_classes": self.n_classes, **self._doubt()}
        yield self._page("labels.html", "labels.html", "Labels", values)
        yield self._page("overview.html", "index.html", "Overview", self._overview())

    def _page(
        self, template: str, path: str, title: str, values: Mapping[str, Any]
    ) -> tuple[str, bytes]:
        return path, render(self.site, template, path, title, values)

    def _more_labels(self) -> Iterator[tuple[int, Sequence[Label]]]:
        """The labels without a page, in pages of names, which are numbered from 2."""
        rest = self.labels[MOST_LABEL_PAGES:]
        for start in range(0, len(rest), _NAMES_A_PAGE):
            yield 2 + start // _NAMES_A_PAGE, rest[start : start + _NAMES_A_PAGE]

    def _label_page(self, label: Label) -> bytes:
        most, least = (
            self.photos(of.get(label.class_id, ())) for of in (self.chosen.most, self.chosen.least)
        )
        values = {
            "label": label,
            "most": most,
            "least": least,
            "bins": _bins(self.counted.bins[label.class_id].tolist()),
            "share": label.count / max(self.counted.labelled, 1),
        }
        assert label.href
        return render(self.site, "label.html", label.href, label.name, values)

    def _doubt(self) -> dict[str, Any]:
        return {
            "is_sigmoid": self.is_sigmoid,
            "n_doubtful": self.counted.n_doubtful,
            "n_labelled": self.counted.labelled,
            "margin": DOUBTFUL_MARGIN,
            "has_second": self.is_sigmoid or self.record.fingerprint_fields.get("top_k", 2) > 1,
        }

    def _failures(self) -> dict[str, Any]:
        reasons = [
            {
                "code": code,
                "n": n,
                "share": n / max(self.counted.errors.values()),
                "what": ERROR_CODES.get(code, ""),
                "advice": ADVICE.get(code, ""),
                "again": code in RETRYABLE,
                "examples": self.counted.examples[code],
            }
            for code, n in sorted(self.counted.errors.items(), key=lambda each: (-each[1], each[0]))
        ]
        return {"reasons": reasons, "n_failed": self.counted.failed, "n_rows": self.counted.rows}

    def _folders(self) -> dict[str, Any]:
        folders = [
            {"folder": each, "best": [(self.classes[class_id], n) for class_id, n in each.best]}
            for each in self.counted.folders
        ]
        n_all = self.counted.n_folders
        rows = sum(each.rows for each in self.counted.folders)
        largest = max((each.rows for each in self.counted.folders), default=1)
        return {"folders": folders, "n_all": n_all, "largest": largest,
                "n_other": self.counted.rows - rows}  # fmt: skip

    def _overview(self) -> dict[str, Any]:
        top = [
            (label, self.photos(self.chosen.most.get(label.class_id, ())[:1]))
            for label in self.labels[:_TOP_LABELS]
        ]
        fields = self.record.fingerprint_fields
        return {
            "top_k": fields.get("top_k"),
            "side": (fields.get("preprocess") or {}).get("crop_size"),
            "counted": self.counted,
            "record": self.record,
            "n_classes": self.n_classes,
            "n_labels": len(self.labels),
            "top": top,
            "bins": _bins(self.counted.bins.sum(axis=0).tolist()),
            "doubtful": self.photos(self.chosen.doubtful[:_STRIP]),
            "missing": self.thumbnails.missing,
            "runs": [_run(run) for run in reversed(self.runs[-_RUNS:])],
            **self._failures(),
            **self._doubt(),
        }


def _bins(counts: Sequence[int]) -> list[dict[str, Any]]:
    """The bars of a histogram of the confidence."""
    largest, total = max([*counts, 1]), max(sum(counts), 1)
    return [
        {"n": n, "height": n / largest, "share": n / total,
         "from": place / N_BINS, "to": (place + 1) / N_BINS}
        for place, n in enumerate(counts)
    ]  # fmt: skip


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run of the history; one that ended in an error says little."""
    code, counts = run.get("exit_code"), run.get("counts") or {}
    return {
        "at": str(run.get("finished_at", "")).replace("T", " ").removesuffix("+00:00"),
        "ended": ENDED.get(code, f"exit code {code}") if isinstance(code, int) else "",
        "is_well": code == 0,
        "images": run.get("images"),
        "failed": counts.get("failed"),
        "images_per_s": run.get("images_per_s"),
        "seconds": run.get("seconds"),
        "precision": run.get("precision"),
        "device": run.get("device"),
        "message": run.get("message", ""),
    }
