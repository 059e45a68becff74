"""What a scan left out, counted: files of other kinds by extension, so that nobody takes a folder of
.cr2 or .mov for an empty one, and clutter by its kind.
"""

import os
from collections import Counter
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from .clutter import SUSPECT, kind_of

NO_EXTENSION, HIDDEN, OTHERS = "no extension", "hidden", "others"

_MOST_KINDS, _LONGEST = 1000, 12  # whatever names a folder holds, this takes no memory to speak of
_SHOWN = 8

_MOST_FOLDERS, _MOST_FILES = 1_000, 100_000  # of clutter looked at in a scan, only to be counted
_CHUNK_ROWS = 65_536


class LeftOut(Counter[str]):
    """Files that are no images by their name: how many, by lower-case extension."""

    def add(self, path: str) -> None:
        kind = _kind(path)
        self[kind if kind in self or len(self) < _MOST_KINDS else OTHERS] += 1

    def __str__(self) -> str:
        """The number of all, and the most frequent kinds: 304 (.cr2 214, .mov 90)."""
        kinds = sorted(
            ((kind, count) for kind, count in self.items() if kind != OTHERS),
            key=lambda kind: (-kind[1], kind[0]),
        )
        shown = [f"{kind} {count:,}" for kind, count in kinds[:_SHOWN]]
        rest = self[OTHERS] + sum(count for _, count in kinds[_SHOWN:])
        return f"{self.total():,} ({', '.join([*shown, f'{OTHERS} {rest:,}'] if rest else shown)})"


def _kind(path: str) -> str:
    name = path[path.rfind("/") + 1 :]
    if name.startswith("."):
        return HIDDEN
    dot = name.rfind(".")
    extension = name[dot:].lower() if dot > 0 else ""
    return (
        extension
        if 1 < len(extension) <= _LONGEST
        else OTHERS
        if len(extension) > 1
        else NO_EXTENSION
    )


class LeftClutter:
    """Clutter that a scan left out, by kind: how many files, as far as they were counted.

    To count them costs a look into each folder, and a box's thumbnails or snapshots may be more
    than all photos: after some folders the rest of them goes uncounted.
    """

    def __init__(self) -> None:
        self.files = Counter[str]()
        self.uncounted = Counter[str]()  # folders
        self._folders_left, self._files_left = _MOST_FOLDERS, _MOST_FILES

    def add_file(self, kind: str) -> None:
        self.files[kind] += 1

    def add_folder(self, kind: str, place: str | None = None) -> None:
        """Count the files below a folder, where it has a place on disk."""
        pending = [] if place is None else [place]
        if place is None:
            self.uncounted[kind] += 1
        while pending:
            folder = pending.pop()
            if self._folders_left <= 0 or self._files_left <= 0:
                self.uncounted[kind] += 1
                return
            self._folders_left -= 1
            with suppress(OSError), os.scandir(folder) as entries:  # nobody misses what is in there
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        self.files[kind] += 1
                        self._files_left -= 1

    def __bool__(self) -> bool:
        return bool(self.files or self.uncounted)

    def __str__(self) -> str:
        """Each kind and its number, the largest first: @eaDir 1,204 files, #recycle 1 file."""
        kinds = sorted(
            {*self.files, *self.uncounted},
            key=lambda kind: (-self.files[kind], -self.uncounted[kind], kind),
        )
        return ", ".join(f"{kind} {self._number(kind)}" for kind in kinds)

    def _number(self, kind: str) -> str:
        files, folders = self.files[kind], self.uncounted[kind]
        if not files:
            return f"{folders:,} folder{'s' * (folders > 1)}"
        return f"{'more than ' * bool(folders)}{files:,} file{'s' * (files > 1)}"

    def to_record(self) -> dict[str, dict[str, int]]:
        """As JSON: by kind, the files counted and the folders that were not looked into."""
        return {
            kind: {"files": self.files[kind], "uncounted_folders": self.uncounted[kind]}
            for kind in sorted({*self.files, *self.uncounted})
        }


def clutter_among(rows: pa.Table) -> pa.Table:
    """Those rows, by root and path, whose image is left out by default where a scan finds it."""
    is_suspect = pc.match_substring_regex(rows["path"], SUSPECT)
    roots = pc.unique(rows["root"].cast(pa.string()))
    suspect_roots = roots.filter(pc.match_substring_regex(roots, SUSPECT))
    if len(suspect_roots):
        is_below = pc.is_in(rows["root"].cast(pa.string()), value_set=suspect_roots)
        is_suspect = pc.or_(is_suspect, is_below)
    suspect = rows.filter(is_suspect)
    is_clutter = [
        kind_of(row["path"], row["root"]) is not None
        for batch in suspect.select(["root", "path"]).to_batches(max_chunksize=_CHUNK_ROWS)
        for row in batch.to_pylist()
    ]
    return suspect.filter(pa.array(is_clutter, pa.bool_()))
