"""Photo: one tile of a gallery, as it is shown; and the thumbnails of many."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import xxhash

from jobs.storage.object_store import AnyPath
from pipeline.failures import ERROR_CODES
from pipeline.find.of_rows import sources_of_rows
from pipeline.find.selection import Selection
from pipeline.load.thumbnails import THUMBNAIL_RULES, NoThumbnail, Wanted, make_thumbnails

from .folder import ReportFolder
from .shell import percent

# What a tile needs of a row, beside top_k.
COLUMNS = (
    "root", "path", "size_bytes", "mtime", "content_hash", "width", "height", "format", "label",
    "probability", "top_k",
)  # fmt: skip
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_SHOWN = 20  # classes of a photo, at most

_WHY_NONE = dict.fromkeys(ERROR_CODES, "cannot be shown") | {
    "not_found": "no longer there",
    "permission_denied": "may not be read",
    "timeout": "took too long",
    "changed": "changed since",
    "not_tried": "not tried",
}


@dataclass(frozen=True)
class Best:
    """One of a photo's classes."""

    label: str
    probability: float


@dataclass(frozen=True)
class Photo:
    """A tile. `thumb` is where its thumbnail lies in the report's folder, or `no_thumb` says why
    there is none. `best` are its classes, best first, and `more` how many are left out.
    """

    root: str
    path: str
    label: str
    probability: float
    best: Sequence[Best]
    more: int = 0
    thumb: str | None = None
    no_thumb: str = ""
    facts: str = ""

    @property
    def alt(self) -> str:
        name = self.path.rsplit("/", 1)[-1]
        return f"{name}: {self.label}, {percent(self.probability)}"


@dataclass(frozen=True)
class Thumbnails:
    """Where each row's thumbnail lies in the report's folder, and how many rows have none, by code."""

    places: Mapping[str, str | NoThumbnail]  # by thumbnail_name
    missing: Mapping[str, int] = field(default_factory=dict)
    made: int = 0


def photo_of(row: Mapping[str, Any], thumbnails: Thumbnails) -> Photo:
    """The tile of a labelled row, which has COLUMNS."""
    place = thumbnails.places.get(thumbnail_name(row), NoThumbnail("not_tried"))
    top = row["top_k"]
    size = f"{row['width']} × {row['height']}" if row["width"] and row["height"] else ""
    facts = f"{size} {row['format'] or ''} in {row['root']}".strip()
    missing = place.code if isinstance(place, NoThumbnail) else ""
    return Photo(
        root=row["root"],
        path=row["path"],
        label=row["label"],
        probability=row["probability"],
        best=[Best(each["label"], each["probability"]) for each in top[:_SHOWN]],
        more=max(len(top) - _SHOWN, 0),
        thumb=place if isinstance(place, str) else None,
        no_thumb=_WHY_NONE.get(missing, missing),
        facts=facts,
    )


def thumbnail_name(row: Mapping[str, Any]) -> str:
    """The file a row's thumbnail is in: named by the photo's bytes, where the table knows them, and
    else by the state it was found in. Nothing of the photo's own name is in it.
    """
    state = [row["content_hash"]]
    if state == [None]:
        state = [str(row[name]) for name in ("root", "path", "size_bytes", "mtime")]
    key = "\0".join([THUMBNAIL_RULES, *state])
    return f"thumbs/{xxhash.xxh3_128_hexdigest(key.encode())}.jpg"


def _stamp(row: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Size and time of change, in microseconds, that a row was found with."""
    mtime = row["mtime"]
    return row["size_bytes"], None if mtime is None else (mtime - _EPOCH) // _MICROSECOND


def make_missing(
    folder: ReportFolder,
    rows: Sequence[Mapping[str, Any]],
    selection: Selection,
    places: Sequence[AnyPath],
) -> Thumbnails:
    """Let `folder` have a thumbnail of each row's photo; those of the last report are kept."""
    found: dict[str, str | NoThumbnail] = {}
    todo: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = thumbnail_name(row)
        if folder.keep(name):
            found[name] = name
        else:
            todo[name] = row
    names = list(todo)
    sources = sources_of_rows(
        [(todo[name]["root"], todo[name]["path"]) for name in names], selection, places
    )
    wanted = [
        Wanted(source, todo[name]["content_hash"], _stamp(todo[name]))
        for name, source in zip(names, sources, strict=True)
    ]
    for number, made in make_thumbnails(wanted):
        name = names[number]
        if isinstance(made, bytes):
            folder.write(name, made)
            found[name] = name
        else:
            found[name] = made
    missing = Counter(place.code for place in found.values() if isinstance(place, NoThumbnail))
    return Thumbnails(found, dict(sorted(missing.items())), len(names) - missing.total())
