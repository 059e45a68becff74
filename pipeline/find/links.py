"""Links to folders that a scan followed to what it lists under another name as well.

Both names are real paths, so the images have a row for each; but nobody should find that out from
the counts.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.path_names import display

from .overlap import above, slashed

LINKS_KEPT = 1000  # looked at after a scan, of all that it followed
_SHOWN = 10

Enter = Callable[[str], bool]


def repeated_links(
    links: Iterable[tuple[str, str]], folders: Sequence[str], enter: Enter, listing: pa.Table
) -> list[str]:
    """Say which of the links, each a PATH and the path below it, lead to images listed under
    another name.

    `folders` are the PATHs that were looked into, `enter` says into which folders below them.
    """
    trees = (
        [(os.fsencode(folder), _real(os.fsencode(folder))) for folder in folders] if links else []
    )
    reached: list[bytes] = []  # by other links
    repeated: list[tuple[str, str, bytes]] = []
    for root, path in sorted(links):
        if repeated and repeated[-1][0] == root and path.startswith(f"{repeated[-1][1]}/"):
            continue  # below a link that was named
        link = os.fsencode(os.path.join(root, path))
        target, own = _real(link), _real(os.fsencode(root))
        if _real(os.path.dirname(link)).startswith(target):
            continue  # to a folder that it lies in, and so not followed
        others = {place for folder, place in trees if folder != link} | set(reached)
        lies_in_other = any(
            _reaches(outer, target, enter) for outer in [target, *above(target)] if outer in others
        )
        if lies_in_other or any(
            place != own and place.startswith(target) and _reaches(target, place, enter)
            for place in others
        ):
            repeated.append((root, path, target))
        reached.append(target)
    lines = [
        f"{display(f'{root}/{path}')} is a link to {display(os.fsdecode(target[:-1]))}, which is "
        "looked into under another name, too: its images have a row for each (--exclude leaves a "
        "link out)"
        for root, path, target in repeated[:_SHOWN]
        if _has_images(listing, display(root), display(path))
    ]
    if len(repeated) > _SHOWN:
        lines.append(
            f"{len(repeated) - _SHOWN:,} more links lead to folders that are looked into under "
            "another name, too"
        )
    return lines


def _real(place: bytes) -> bytes:
    return slashed(os.path.realpath(place))


def _reaches(outer: bytes, inner: bytes, enter: Enter) -> bool:
    """Whether a scan of one folder comes to another folder in it."""
    below = os.fsdecode(inner[len(outer) :].rstrip(b"/"))
    ends = [place for place, char in enumerate(below) if char == "/"] + (
        [len(below)] if below else []
    )
    return all(enter(below[:end]) for end in ends)


def _has_images(listing: pa.Table, root: str, folder: str) -> bool:
    is_below = pc.and_(
        pc.equal(listing["root"], root), pc.starts_with(listing["path"], f"{folder}/")
    )
    return bool(pc.any(is_below).as_py())
