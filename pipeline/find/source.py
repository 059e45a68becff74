"""Source and Sources: where the bytes of each image of a listing are."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.storage.object_store import AnyPath, StorePath, at_one_of, is_uri
from pipeline.path_names import unescape_name


@dataclass(frozen=True)
class Source:
    """A file of its own, `size` bytes from `offset` in an archive, or row `offset` of a table's
    `column`.

    Without an offset it is a damaged archive, `container`, of which the rest cannot be listed.
    """

    place: bytes | StorePath
    container: bool = False
    offset: int | None = None
    size: int | None = None
    column: str | None = None


class Sources:
    """The sources of a listing's images, by row. Kept in Arrow, since there may be very many.

    `places` are the PATHs, which say how to connect to the stores that the listing names.
    """

    def __init__(
        self, listing: pa.Table, image_column: str | None, places: Sequence[AnyPath]
    ) -> None:
        columns = ("root", "path", "container", "offset", "size_bytes")
        self.columns = [listing[name] for name in columns]
        self.image_column = image_column
        self.places = places
        roots = [locate(root.as_py(), places=places) for root in self.columns[0].unique()]
        self.stores = [root for root in roots if isinstance(root, StorePath)]

    def __getitem__(self, index: int) -> Source:
        root, path, container, offset, size = (column[index].as_py() for column in self.columns)
        if container is None:
            return Source(locate(root, path, places=self.places))
        place = locate(container, places=self.places)
        is_table = offset is not None and size is None
        return Source(place, True, offset, size, self.image_column if is_table else None)


def locate(*names: str, places: Iterable[AnyPath] = ()) -> bytes | StorePath:
    """Where a root, or a path below one, lies: as the bytes the operating system knows it by, or in
    a store, connected to as it is for one of `places`.
    """
    path = b"/".join(unescape_name(name) for name in names)
    text = os.fsdecode(path)
    if is_uri(text):
        return at_one_of(places, text)
    return os.path.join(*(unescape_name(name) for name in names))
