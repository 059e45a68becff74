"""Images that lie in archives and tables: these are looked into, and each image is an entry.

No image is decoded here. An archive that has not changed since the table was written is not looked
into again; of one that grew the earlier images are known (grown.py).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from jobs.storage.object_store import AnyPath
from pipeline.errors import UsageError
from pipeline.path_names import display, escape_text

from .clutter import kind_of
from .found import Entry, Scan
from .grown import Archive, Image, KnownArchives, State, row_times
from .image_tables import has_column, keys, opened
from .overlap import joined
from .selection import IMAGE, TAR, Selection
from .source import locate
from .tar_archives import Damaged, Member, members


class Packed:
    """Looks into archives and tables, and notes in `found` what it leaves out.

    `known` says which archives are left as they are, and which have grown.
    """

    def __init__(
        self,
        found: Scan,
        paths: Sequence[AnyPath],
        selection: Selection,
        known: KnownArchives,
    ) -> None:
        self.found, self.paths, self.selection, self.known = found, paths, selection, known

    def entries(
        self, kind: str, root: str, path: str, size: int | None, mtime: int | None
    ) -> Iterator[Entry]:
        """An archive or a table that was found below a root."""
        if kind == TAR:
            yield from self.archive(root, path, size, mtime)
            return
        try:
            has_images = self._has_images(root, path)
        except OSError as error:  # as of an archive: nobody knows what is in it
            self.found.unlisted[display(root), display(path)] = error.strerror or str(error)
            return
        if has_images:
            yield from self.table(root, path, mtime)
        else:
            self.found.leave_out(path)

    def _has_images(self, root: str, path: str) -> bool:
        assert self.selection.image_column
        with opened(locate(display(root), display(path), places=self.paths)) as file:
            return has_column(file, self.selection.image_column)

    def archive(self, root: str, path: str, size: int | None, mtime: int | None) -> Iterator[Entry]:
        key = display(root), display(path)
        place = display(f"{root.rstrip('/')}/{path}")
        settled = self.known.settled
        for known in [*self._better_names(key, place), key] if settled else ():
            if mtime is not None and settled.get(known) == mtime:
                self.found.unchanged.append(known)
                return
        try:
            with opened(locate(*key, places=self.paths)) as file:
                images = self._images(path, file)
                if earlier := self.known.images_in(key):
                    yield from self._known(key, place, images, earlier, mtime, file)
                else:
                    for name, image in images:
                        yield key[0], name, image.size, mtime, place, image.offset
        except Damaged:
            # A row of its own says so; the members before the damage have theirs all the same.
            yield key[0], path, size, mtime, place, None
        except OSError as error:
            # As of a folder: what is in it is not known.
            self.found.unlisted[key] = error.strerror or str(error)

    def _known(
        self,
        key: Archive,
        place: str,
        images: Iterator[tuple[str, Member]],
        earlier: Mapping[str, State],
        mtime: int | None,
        file: BinaryIO,
    ) -> Iterator[Entry]:
        """Those of an archive that has rows; raises Damaged after what lies before the damage."""
        found: list[tuple[str, Member]] = []
        damage = None
        try:
            found.extend(images)
        except Damaged as error:
            damage = error
        states = [
            Image(escape_text(name)[0], member.offset, member.size, member.changed_s)
            for name, member in found
        ]
        times = row_times(states, earlier, mtime, file, partial(self.known.hashes, key[0]))
        for (name, member), time in zip(found, times, strict=True):
            yield key[0], name, member.size, time, place, member.offset
        if damage:
            raise damage

    def _images(self, path: str, file: BinaryIO) -> Iterator[tuple[str, Member]]:
        """The images in an archive, with their path below the root that it has one from."""
        folder, clutter = path, None  # of the member before: most lie in the same one
        for member in members(file):
            name = f"{path}/{os.fsdecode(member.name).removeprefix('./')}"
            end = name.rfind("/")
            if name[:end] != folder:
                folder = name[:end]
                clutter = kind_of(f"{folder}/") if self.selection.default_excludes else None
            if clutter is not None:
                self.found.clutter.add_file(clutter)
            elif self.selection.kind(name) == IMAGE:
                yield name, member
            else:
                self.found.leave_out(name)

    def _better_names(self, key: tuple[str, str], place: str) -> Iterator[tuple[str, str]]:
        """The other roots that the rows of an archive may be under."""
        yield from self.found.inner.get(place, ())  # where it was named outright
        for outer, folder in self.found.inner.get(key[0], ()):
            yield outer, joined(folder, key[1])

    def table(self, root: str, path: str, mtime: int | None) -> Iterator[Entry]:
        full = f"{root.rstrip('/')}/{path}" if path else root
        assert self.selection.image_column
        try:
            with opened(locate(display(full), places=self.paths)) as file:
                for key, row in keys(
                    file, self.selection.image_column, self.selection.key_column, full
                ):
                    yield (
                        display(root),
                        f"{path}/{key}" if path else key,
                        None,
                        mtime,
                        display(full),
                        row,
                    )
        except (OSError, Damaged) as error:
            raise UsageError(f"{full} cannot be read: {error}") from error
