"""Which files are images, archives or tables of images, by their names."""

import os
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

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

TAR, TABLE = ".tar", ".parquet"


@dataclass(frozen=True)
class Wanted:
    """Which files a scan takes: --include instead of the known extensions, --exclude after both.

    A pattern without a slash is matched with the last part of a path, one with a slash with all of it.
    Tables of images are taken where an `image_column` is named.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    key_column: str | None = None

    def to_record(self) -> dict[str, Any]:
        return asdict(self) | {"include": list(self.include), "exclude": list(self.exclude)}

    def folder(self, path: str) -> bool:
        return not self._is_left_out(path)

    def any(self, path: str) -> bool:
        return self.file(path) or self.archive(path) or self.table(path)

    def file(self, path: str) -> bool:
        if self.include:
            wanted = any(_matches(path, pattern) for pattern in self.include)
        else:
            wanted = os.path.splitext(path)[1].lower() in EXTENSIONS and not os.path.basename(path).startswith(".")
        return wanted and not self.excluded(path)

    def excluded(self, path: str) -> bool:
        return any(_matches(path, pattern) for pattern in self.exclude)

    def archive(self, path: str) -> bool:
        return path.lower().endswith(TAR) and not self._is_left_out(path)

    def table(self, path: str) -> bool:
        return self.image_column is not None and path.lower().endswith(TABLE) and not self._is_left_out(path)

    def _is_left_out(self, path: str) -> bool:
        return os.path.basename(path).startswith(".") or self.excluded(path)


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else os.path.basename(path), pattern)
