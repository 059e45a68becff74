"""Where the photos of a table's rows lie: a row has root and path, and not where in an archive or a
table of images it was found. These are listed once more, each once, and nothing else is.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa

from jobs.archives import ARCHIVE_OF, is_archive
from jobs.errors import JobError
from jobs.storage.object_store import AnyPath, StorePath
from pipeline.errors import LabelImagesError
from pipeline.path_names import unescape_name

from .image_tables import keys, opened
from .selection import TABLE, Selection
from .source import Source, locate
from .tar_archives import Damaged, members

Key = tuple[str, str]  # root and path

# By pattern: in lower case a name may be longer than it is, and its parts are elsewhere.
_IN_ARCHIVE = re.compile(ARCHIVE_OF)
_IN_TABLE = re.compile(rf"(?is).*?{re.escape(TABLE)}/")


def sources_of_rows(
    rows: Sequence[Key], selection: Selection, places: Sequence[AnyPath] = ()
) -> list[Source | None]:
    """The source of each row's photo; None where it is no longer to be found.

    `places` say how to connect to stores. What a row leads to is not opened here, but for the
    archives and tables that photos lie in.
    """
    sources: dict[Key, Source | None] = {}
    inside: dict[Key, dict[bytes, Key]] = defaultdict(dict)  # by container: name in it -> row
    for row in rows:
        container, name = _split(row, selection)
        if container is None:
            try:
                sources[row] = Source(locate(*row, places=places))
            except JobError:  # of a store that is none to this installation
                sources[row] = None
        else:
            inside[container][name] = row
    for container, wanted in inside.items():
        found: dict[bytes, Source] = {}
        try:
            place = (
                locate(*container, places=places)
                if container[1]
                else locate(container[0], places=places)
            )
            if _is_folder(place):  # one that is called like an archive
                found = {name: Source(locate(*row, places=places)) for name, row in wanted.items()}
            else:
                for name, source in _listed(place, container, selection, wanted):
                    found.setdefault(name, source)
        except (OSError, Damaged, JobError, pa.ArrowException, LabelImagesError):
            pass  # gone, damaged, or another file by now: what was found of it until then counts
        sources |= {row: found.get(name) for name, row in wanted.items()}
    return [sources[row] for row in rows]


def _split(row: Key, selection: Selection) -> tuple[Key | None, bytes]:
    """A row's container, as (root, path below it), and its name in there; (None, b"") for a file
    of its own.
    """
    root, path = row
    if match := _IN_ARCHIVE.match(path):
        end = match.end()
        return (root, path[: end - 1]), unescape_name(path[end:])
    if selection.image_column is not None:
        if root.lower().endswith(TABLE):  # a table that was named outright
            return (root, ""), unescape_name(path)
        if match := _IN_TABLE.match(path):
            end = match.end()
            return (root, path[: end - 1]), unescape_name(path[end:])
    return None, b""


def _is_folder(place: bytes | StorePath) -> bool:
    return place.is_dir() if isinstance(place, StorePath) else os.path.isdir(place)


def _listed(
    place: bytes | StorePath, container: Key, selection: Selection, wanted: dict[bytes, Key]
) -> Iterator[tuple[bytes, Source]]:
    """What a container has of the wanted names. Raises OSError, Damaged, UsageError."""
    is_tar = is_archive(container[1])
    with opened(place) as file:
        if is_tar:
            for member in members(file):
                name = member.name.removeprefix(b"./")
                if name in wanted:
                    yield name, Source(place, True, member.offset, member.size)
            return
        column = selection.image_column
        assert column is not None
        if selection.key_column is None:
            for name in wanted:
                if name.isdigit():
                    yield name, Source(place, True, int(name), None, column)
            return
        for key, row in keys(file, column, selection.key_column, str(place)):
            name = os.fsencode(key)
            if name in wanted:
                yield name, Source(place, True, row, None, column)
