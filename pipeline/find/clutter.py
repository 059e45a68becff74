"""Clutter: what storage boxes, systems and photo programs keep beside photos, left out by default.

By name, and only below the root that a user named: what the root itself is called is that user's
word. A library of a photo program is looked into for its originals alone.
"""

import re

# A record of a selection holds it: another number whenever other names are left out.
DEFAULT_EXCLUDES = 1

# Names in lower case -> what a plan calls them.
_FOLDERS = {
    name.lower(): name
    for name in (
        "@eaDir",  # Synology's thumbnails and indexes
        "#recycle",
        "#snapshot",
        "@Recycle",  # QNAP's
        "@Recently-Snapshot",
        ".@__thumb",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        ".thumbnails",
    )
}
_FILES = {name.lower(): name for name in ("Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db")}
_TRASH, _PREVIEWS, _APPLE_DOUBLE = ".trash", ".lrdata", "._"

# Of Apple's Photos, iPhoto and Aperture; in _ORIGINALS of a library is what was taken or imported.
_LIBRARIES = (
    ".photoslibrary",
    ".photolibrary",
    ".aplibrary",
    ".migratedphotolibrary",
    ".migratedaplibrary",
)
_ORIGINALS = frozenset(["originals", "masters"])

# What the path of any image in clutter matches, or its root, and few others do.
SUSPECT = (
    f"(?i)(?:{'|'.join(map(re.escape, (*_FOLDERS, *_FILES, _TRASH, _PREVIEWS, *_LIBRARIES)))})"
    r"|(?:^|/)\._"
)


def folder_kind(path: str, root: str = "") -> str | None:
    """What kind of clutter a folder is that lies below `root`; None for one of photos.

    The folders above it are taken to be none.
    """
    above, _, name = path.rpartition("/")
    name = name.lower()
    if kind := _FOLDERS.get(name):
        return kind
    if name.startswith(_TRASH):
        return ".Trash*"
    if name.endswith(_PREVIEWS):
        return "*.lrdata"
    library = (above or root).lower().rstrip("/")
    if library.endswith(_LIBRARIES) and name not in _ORIGINALS:
        return f"*{library[library.rindex('.') :]}"
    return None


def file_kind(name: str) -> str | None:
    """What kind of clutter a file is by its own name."""
    return "._*" if name.startswith(_APPLE_DOUBLE) else _FILES.get(name.lower())


def kind_of(path: str, root: str = "") -> str | None:
    """What kind of clutter an image is, or lies in, by its path below `root`; None for a photo."""
    end = path.find("/")
    while end >= 0:
        if kind := folder_kind(path[:end], root):
            return kind
        end = path.find("/", end + 1)
    return file_kind(path[path.rfind("/") + 1 :])
