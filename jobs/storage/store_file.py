"""An object of a store as a file: read from anywhere, each request repeated where it may pass."""

import errno
import io
import os
from collections.abc import Callable
from typing import Any, TypeVar

from .retry import persistent

_Answer = TypeVar("_Answer")


class StoreFile(io.RawIOBase):
    """An object, read as a file is.

    Each request is repeated, from opening on, where the reason it failed for may pass. `opened`
    gives pyarrow's file anew. Where that is another object by then, which a run has put in its
    place, reading fails: bytes of two are never joined.
    """

    def __init__(self, opened: Callable[[], Any]) -> None:
        super().__init__()
        self._opened = opened
        self._file: Any = None
        self._at = 0
        self._version: Any = None
        self._size: int = self._asked(lambda file: file.size())

    @persistent
    def _asked(self, request: Callable[[Any], _Answer]) -> _Answer:
        try:
            if self._file is None:
                self._file = self._opened()
                version = _version(self._file)
                if self._version not in (None, version):
                    raise OSError(errno.ESTALE, "it was replaced while it was read")
                self._version = version
            return request(self._file)
        except OSError:
            self._file = None  # what is left of a connection that failed may never answer again
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read as many bytes as asked for, or all that are left."""
        left = max(self._size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = self._asked(lambda file: read_whole(file, size, self._at)) if size else b""
        self._at += size
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file = None
        super().close()


def _version(file: Any) -> tuple[int, Any, Any]:
    """What tells an object from another one of its name, as far as the store says."""
    said = file.metadata() or {}
    return file.size(), said.get("ETag"), said.get("Last-Modified")


def read_whole(file: Any, size: int, start: int) -> bytes:
    """Read `size` bytes from `start` on. Raises OSError where fewer come."""
    data = file.read_at(size, start)
    if len(data) != size:
        raise OSError(f"{len(data)} of {size} bytes came")
    return bytes(data)
