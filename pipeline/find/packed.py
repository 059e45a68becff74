"""Images that lie in archives and tables: these are looked into, and each image is an entry.

No image is opened here. An archive that has not changed since the table was written is not looked
into again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

from jobs.storage.object_store import AnyPath
from pipeline.errors import UsageError
from pipeline.path_names import display

from .clutter import kind_of
from .found import Entry, Scan
from .image_tables import has_column, keys, opened
from .overlap import joined
from .selection import IMAGE, TAR, Selection
from .source import locate
from .tar_archives import Damaged, members


class Packed:
    """Looks into archives and tables, and notes in `found` what it leaves out.

    `known` are (root, archive) with their time of change; those that still have it are left as they
    are.
    """

    def __init__(
        self,
        found: Scan,
        paths: Sequence[AnyPath],
        selection: Selection,
        known: Mapping[tuple[str, str], int],
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
        for known in [*self._better_names(key, place), key] if self.known else ():
            if mtime is not None and self.known.get(known) == mtime:
                self.found.unchanged.append(known)
                return
        try:
            with opened(locate(*key, places=self.paths)) as file:
                folder, clutter = path, None  # of the member before: most lie in the same one
                for name, offset, length in members(file):
                    member = f"{path}/{os.fsdecode(name).removeprefix('./')}"
                    end = member.rfind("/")
                    if member[:end] != folder:
                        folder = member[:end]
                        clutter = kind_of(f"{folder}/") if self.selection.default_excludes else None
                    if clutter is not None:
                        self.found.clutter.add_file(clutter)
                    elif self.selection.kind(member) == IMAGE:
                        yield key[0], member, length, mtime, place, offset
                    else:
                        self.found.leave_out(member)
        except Damaged:
            # A row of its own says so; the members before the damage have theirs all the same.
            yield key[0], path, size, mtime, place, None
        except OSError as error:
            # As of a folder: what is in it is not known.
            self.found.unlisted[key] = error.strerror or str(error)

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
