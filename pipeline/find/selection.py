"""Which files are images, archives or tables of images, by their names."""

import os
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from typing import Any

from jobs import archives

from .clutter import DEFAULT_EXCLUDES, file_kind, folder_kind

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
    ]
)

# Of raw photos that LibRaw reads. Not .raw: too many other files are called so.
RAW_EXTENSIONS = frozenset(
    [
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos",
        ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ]
)  # fmt: skip

IMAGE, TAR, TABLE = "image", archives.SUFFIX, ".parquet"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


@dataclass(frozen=True)
class Selection:
    """Which files a scan takes: --include instead of the known extensions, --exclude after both.

    A pattern without a slash is matched with the last part of a path, one with a slash with all of
    it. --include does so in any case of letters, as extensions are taken; --exclude by the letter,
    so that it never leaves out more than is written there. Tables of images are taken where an
    `image_column` is named. `default_excludes` leaves out hidden names, with a leading dot, and
    clutter (clutter.py). `raw` takes raw photos; of `pairs` one of them and its JPEG either all files
    are taken, or the "first" (pairs.py).
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    key_column: str | None = None
    default_excludes: bool = True
    raw: bool = False
    pairs: str = "all"

    def to_record(self) -> dict[str, Any]:
        record = asdict(self) | {"include": list(self.include), "exclude": list(self.exclude)}
        record["default_excludes"] = DEFAULT_EXCLUDES if self.default_excludes else None
        # What is not asked for is not said: tables of earlier versions say nothing of it.
        if not self.raw or self.include:
            del record["raw"]
        if self.pairs == "all":
            del record["pairs"]
        # Patterns that a table was made with when their case still counted may have taken other
        # files.
        return record | ({"any_case": True} if self.include else {})

    def folder(self, path: str, root: str = "") -> bool:
        """Whether to look into a folder, by its path below a root."""
        if self.default_excludes and (
            path[path.rfind("/") + 1 :].startswith(".") or folder_kind(path, root)
        ):
            return False
        return not (self.exclude and self._is_excluded(path))

    def kind(self, path: str) -> str | None:
        """IMAGE, TAR or TABLE; None for what is left out.

        Asked of each file there is, and so made to be quick.
        """
        name = path[path.rfind("/") + 1 :]
        dot = name.rfind(".")
        suffix = name[dot:].lower() if dot > 0 else ""
        is_hidden = self.default_excludes and name.startswith(".")
        kind = None
        if suffix == TAR and not is_hidden:
            kind = TAR
        elif suffix == TABLE and not is_hidden and self.image_column is not None:
            kind = TABLE
        elif (
            any(_matches(path.lower(), pattern.lower()) for pattern in self.include)
            if self.include
            else (
                (suffix in EXTENSIONS or (self.raw and suffix in RAW_EXTENSIONS)) and not is_hidden
            )
        ):
            # Of what is no image by its usual name: such as ._a.jpg, which *.jpg matches.
            kind = None if self.include and self.default_excludes and file_kind(name) else IMAGE
        return None if self.exclude and self._is_excluded(path) else kind

    def takes(self, path: str, root: str = "") -> bool:
        """Whether a scan of a folder takes this image below it, or one in an archive."""
        folders = (path[:end] for end, char in enumerate(path) if char == "/")
        return self.kind(path) == IMAGE and all(self.folder(folder, root) for folder in folders)

    def _is_excluded(self, path: str) -> bool:
        return any(_matches(path, pattern) for pattern in self.exclude)


@cache
def has_raw() -> bool:
    """Whether raw photos can be read here: whether the extra `raw` is installed."""
    return find_spec("rawpy") is not None


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else os.path.basename(path), pattern)
