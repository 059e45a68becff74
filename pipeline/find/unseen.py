"""What a run cannot look at: a folder that may not be read, a PATH or a list that is empty all at
once, a link that leads nowhere.

That does not mean that the images there are gone; most likely something is not mounted. So the rows
of the table stay as they are, the run says so and has an exit code of its own. `--forget FOLDER`
drops them. Pure: works on what the scan found and on the rows known.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.keys import is_among, range_below
from jobs.plan import KNOWN
from pipeline.failures import RETRYABLE
from pipeline.path_names import printable, unescape_name

from .found import Scan
from .kept_rows import KeptRows
from .overlap import below, empty_roots, joined
from .selection import Selection

_FOLDERS_NAMED = 100  # of images that cannot be looked up
_CHUNK_ROWS = 65_536

_KEY = pa.schema([KNOWN.field("root"), KNOWN.field("path")])


@dataclass(frozen=True)
class Unseen:
    """`reasons` says what could not be looked at, a line each; `rows` (bool, one a known row) which
    rows those are of.

    `mounts` are the (root, folder) to be remembered as mount points: those of now, and those that
    are missed.

    `notices` are of folders that have no rows: the run says so, and that is all.

    `not_listed` (root and path) is what the scan listed and the plan shall not have: a PATH that is
    most likely a folder as the file it was taken for, and a file whose row is to be forgotten.
    """

    reasons: list[str]
    rows: pa.Array | None = None
    not_listed: pa.Table | None = None
    notices: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()

    @property
    def n_rows(self) -> int:
        return 0 if self.rows is None else int(pc.sum(self.rows).as_py() or 0)


def find_unseen(
    found: Scan,
    known: pa.Table | None,
    missing_list: str | None,
    selection: Selection,
    forget: Sequence[str],
    mounts: Sequence[tuple[str, str]] = (),
) -> Unseen:
    """Find the rows of `known` of which nobody can say whether their images are still there. These
    rows and the listing are in order.

    `missing_list` is what is wrong with the list of files, `mounts` were mount points when the
    table was written. Rows at or below the folders `forget` are not kept.
    """
    finder = _Finder(found, KNOWN.empty_table() if known is None else known, forget, selection)
    finder.unlisted()
    finder.empty()
    finder.nowhere()
    finder.lost_folders()
    missed = finder.unmounted(mounts)
    if missing_list:
        finder.list_is_missing(missing_list, selection)
    finder.lost_images()
    kept = finder.kept.rows & ~finder.kept.forgotten
    rows = pa.array(kept) if kept.any() else None
    not_listed = pa.concat_tables(finder.not_listed)
    remembered = tuple(sorted({*found.mounts, *missed}))
    return Unseen(finder.reasons, rows, not_listed, tuple(finder.notices), remembered)


def unseen_places(found: Scan, forget: Sequence[str]) -> list[str]:
    """Name the PATHs and folders that cannot be looked at, for a table whose rows cannot be read:
    it may have rows of them that should be kept.
    """
    finder = _Finder(found, KNOWN.empty_table(), forget, Selection())
    unlisted = {
        f"{root}/{folder}".rstrip("/"): why for (root, folder), why in found.unlisted.items()
    }
    places = unlisted | dict.fromkeys(finder.empty_roots, "it holds no image")
    places |= dict.fromkeys(found.nowhere, "it leads nowhere")
    return [
        f"{printable(place)}: {why}"
        for place, why in places.items()
        if not finder.kept.is_forgotten(place)
    ]


class _Finder:
    """Marks rows and collects the reasons."""

    def __init__(
        self, found: Scan, known: pa.Table, forget: Sequence[str], selection: Selection
    ) -> None:
        self.found, self.known, self.selection = found, known, selection
        self.kept = KeptRows(found, known, forget)
        self.reasons: list[str] = []
        self.notices: list[str] = []
        self.not_listed = [_KEY.empty_table()]

    @cached_property
    def empty_roots(self) -> list[str]:
        unreadable = {root for root, folder in self.found.unlisted if not folder}
        folders = dict.fromkeys(root for root in self.found.folders if root not in unreadable)
        return empty_roots(folders, self.found.inner, self.kept.seen)

    def unlisted(self) -> None:
        for (root, folder), why in self.found.unlisted.items():
            has_rows = self.kept.mark(root, folder)
            place = f"{root}/{folder}".rstrip("/")
            text = f"cannot look into {printable(place)}: {why}"
            if self.kept.is_forgotten(place):
                continue
            if has_rows or not folder:
                self.reasons.append(text)
            else:  # such as one of the system: the same every night
                self.notices.append(f"{text}; --exclude leaves it out")

    def empty(self) -> None:
        for root in sorted(self.empty_roots):
            if self.kept.mark(root) and not self.kept.is_forgotten(root):
                self.reasons.append(
                    f"{printable(root)} holds no image any more, as if nothing were mounted there"
                )

    def nowhere(self) -> None:
        for root, key in self.found.nowhere.items():
            if self.kept.mark(root):  # so it was a folder
                self.not_listed.append(pa.table([[name] for name in key], schema=_KEY))
                if not self.kept.is_forgotten(root):
                    self.reasons.append(
                        f"{printable(root)} leads nowhere, as if what it links to were not mounted"
                    )

    def lost_folders(self) -> None:
        """Keep the rows below links whose target is gone, and below whatever else was a folder, as
        its rows show.
        """
        lost = self.found.lost
        if not len(lost) or not len(self.known):
            return
        # What has a row of its own was a file.
        lost = lost.filter(pc.invert(pc.or_(lost["is_listed"], is_among(lost, self.known))))
        for batch in lost.to_batches(max_chunksize=_CHUNK_ROWS):
            for link in batch.to_pylist():
                root, path = link["root"], link["path"]
                if (root, path) in self.found.unlisted or joined(root, path) in self.found.nowhere:
                    continue
                if self.kept.mark(root, path) and not self.kept.is_forgotten(f"{root}/{path}"):
                    why = link["why"] if link["is_there"] else "it is a link that leads nowhere"
                    place = printable(f"{root.rstrip('/')}/{path}")
                    self.reasons.append(f"cannot look into {place}: {why}")

    def unmounted(self, before: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Find folders that were mount points and no longer are; return those whose rows are kept.

        What the bare mount point holds does not matter, unless most of the images that were on the
        disk are there: then they have been moved into the folder itself.
        """
        missed = []
        for root, folder in before:
            if root in self.found.nowhere:
                missed.append((root, folder))  # for when it leads somewhere again
            # Under another PATH, too, that its root now lies in.
            places = [(root, folder)] + [
                (outer, inside)
                for outer in self.found.folders
                if outer != root and (inside := below(joined(root, folder), outer)) is not None
            ]
            now = [place for place in places if place[0] in self.found.folders]
            if not now or any(place in self.found.mounts for place in now):
                continue
            if not all(self._is_entered(*place) for place in now):
                continue
            ranges = [range_below(self.known, *place) for place in places]
            n_rows = sum(end - start for start, end in ranges)
            if not n_rows or 2 * sum(map(self._still_there, now)) >= n_rows:
                continue
            for place in places:
                self.kept.mark(*place)
            place_text = joined(root, folder).rstrip("/")
            if not self.kept.is_forgotten(place_text):
                missed.append((root, folder))
                if (root, folder) not in self.found.unlisted and root not in self.empty_roots:
                    text = f"{printable(place_text)} was a mount point and is none now"
                    self.reasons.append(text)
        return missed

    def _is_entered(self, root: str, folder: str) -> bool:
        """Whether a scan comes to a folder, or leaves it out by its name."""
        parts = folder.split("/") if folder else []
        return all(self.selection.folder("/".join(parts[: n + 1]), root) for n in range(len(parts)))

    def _still_there(self, place: tuple[str, str]) -> int:
        """How many of the rows below a place still have their image there."""
        known = self.known.slice(*_length(range_below(self.known, *place)))
        listing = self.found.listing.slice(*_length(range_below(self.found.listing, *place)))
        n = int(pc.sum(is_among(listing, known)).as_py() or 0)
        for root, archive in self.found.unchanged:
            if root == place[0] and (not place[1] or archive.startswith(f"{place[1]}/")):
                n += _length(range_below(self.known, root, archive))[1]
        return n

    def list_is_missing(self, why: str, selection: Selection) -> None:
        """Keep all rows that may be the list's: those that no PATH lists, except what a PATH would
        have listed if it were there.
        """
        self.reasons.append(why)
        is_left = pc.invert(is_among(self.known, self.found.listing)).to_numpy().copy()
        for archive in self.found.unchanged:
            start, end = range_below(self.known, *archive)
            is_left[start:end] = False
        folders = pa.array(self.found.folders, pa.string())
        is_of_folder = pc.is_in(self.known["root"].cast(pa.string()), value_set=folders).to_numpy()
        self.kept.rows |= is_left & ~is_of_folder
        for row in np.flatnonzero(is_left & is_of_folder):
            path = os.fsdecode(unescape_name(self.known["path"][int(row)].as_py()))
            root = self.known["root"][int(row)].as_py()
            self.kept.rows[row] |= not selection.takes(path, root)

    def lost_images(self) -> None:
        """Keep the labels of images that cannot be looked up. A row that says of one that it failed
        is tried again.
        """
        lost = self.found.lost
        lost = lost.filter(lost["is_image"])
        if not len(lost) or not len(self.known):
            return
        is_kept = self._has_result(lost.filter(lost["is_there"]))
        is_kept |= self._has_label(lost.filter(pc.invert(lost["is_there"])))
        is_kept &= ~self.kept.rows
        self.kept.rows |= is_kept
        is_forgotten = self.kept.forgotten
        # Their names are still listed: without this each would get a row that says it failed.
        dropped = self.known.filter(pa.array(is_kept & is_forgotten))
        self.not_listed.append(dropped.select(_KEY.names).cast(_KEY))
        kept = self.known.filter(pa.array(is_kept & ~is_forgotten)).select(_KEY.names)
        is_listed = is_among(kept, lost.filter(lost["is_listed"]))
        if pc.any(is_listed).as_py():
            n_away = pc.sum(lost["is_listed"]).as_py()
            self.reasons.append(
                f"of the {self.found.n_names:,} files that the list names {n_away:,} are not there"
            )
        self._name_folders(kept.filter(pc.invert(is_listed)), lost)

    def _has_label(self, lost: pa.Table) -> np.ndarray:
        is_ok = pc.equal(self.known["status"].cast(pa.string()), "ok")
        return pc.and_(is_ok, is_among(self.known, lost)).to_numpy().astype(bool)

    def _has_result(self, lost: pa.Table) -> np.ndarray:
        code = self.known["error_code"].cast(pa.string())
        is_retried = pc.is_in(code, value_set=pa.array(sorted(RETRYABLE), pa.string()))
        is_lost = is_among(self.known, lost)
        return pc.and_(pc.invert(is_retried), is_lost).to_numpy().astype(bool)

    def _name_folders(self, rows: pa.Table, lost: pa.Table) -> None:
        """A reason for each folder, since a whole disk may be away."""
        if not len(rows):
            return
        lost = lost.filter(is_among(lost, rows))
        folder = pc.replace_substring_regex(lost["path"], r"(?s)/?[^/]*\z", "")
        groups = pa.table({"root": lost["root"], "folder": folder, "why": lost["why"]})
        counts = groups.group_by(groups.column_names).aggregate([([], "count_all")])
        counts = counts.sort_by([(name, "ascending") for name in groups.column_names])
        for group in counts.slice(0, _FOLDERS_NAMED).to_pylist():
            place = printable(f"{group['root'].rstrip('/')}/{group['folder']}".rstrip("/") or "/")
            n = group["count_all"]
            self.reasons.append(
                f"{n:,} image{'s' * (n > 1)} in {place} cannot be looked up: {group['why']}"
            )
        if len(counts) > _FOLDERS_NAMED:
            self.reasons.append(
                f"images in {len(counts) - _FOLDERS_NAMED:,} more folders cannot be looked up"
            )


def _length(ends: tuple[int, int]) -> tuple[int, int]:
    """The start and the length of a range that is given by its start and end."""
    return ends[0], ends[1] - ends[0]
