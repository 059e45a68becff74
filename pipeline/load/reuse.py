"""Copies: images whose bytes have a label already, told before they are decoded. Runs in loader workers.

An image is hashed as soon as it is read. Where a row of the table (jobs/donors.py), or an image of
this process before it, has the same bytes, nothing is decoded. What becomes of a
Copy is label/reused_rows.py's to say: it looks again whether the bytes are the same.
"""

import fcntl
import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jobs.storage.arrow import map_arrow

_MOST_CLAIMS = 1 << 22  # 100 MB, and only as much of it as is used: later copies are decoded
_CLAIM = np.dtype([("high", np.uint64), ("low", np.uint64), ("image", np.int64)])


@dataclass(frozen=True)
class Copy:
    """An image with the bytes of another: of a row of the table, which is a `donor` by its number
    (jobs/donors.py), or of an image `of` this job by its index.
    """

    index: int
    content_hash: str
    donor: int | None = None
    of: int | None = None


class Claims:
    """Which image of a run was the first with its bytes, for all its workers. A context manager.

    A table of hashes in memory that processes share, started by fork or anew. Its lock is the
    kernel's: a worker that dies at it holds nobody up. `image` is one more than the index: 0 is an
    empty place.
    """

    def __init__(self, n_images: int) -> None:
        self.n_places = min(1 << max(2 * n_images - 1, 1).bit_length(), _MOST_CLAIMS)
        n_bytes = self.n_places * _CLAIM.itemsize
        if sys.platform == "linux":
            self._file = os.memfd_create("claims")
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="label-images-")
        os.truncate(self._file, n_bytes)
        self._is = _which(self._file)
        self._opened: tuple[int, int, Any] | None = None  # the process, its file, what it maps

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened and self._opened[0] == os.getpid():
            os.close(self._opened[1])
        self._opened = None
        os.close(self._file)
        if sys.platform != "linux":
            os.unlink(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def first(self, number: int, index: int) -> int:
        """The image that was the first to have the bytes with this hash: it may be `index` itself."""
        high, low = number >> 64, number & ((1 << 64) - 1)
        try:
            file, claims = self._open()
        except OSError:
            return index  # no /proc here: then copies are decoded like others
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            for step in range(64):  # a table that is nearly full is left alone
                claim = claims[(low + step) % self.n_places]
                if not claim["image"]:
                    claim["high"], claim["low"] = high, low
                    claim["image"] = index + 1  # last: whoever dies before leaves the place empty
                    return index
                if claim["low"] == low and claim["high"] == high:
                    return int(claim["image"]) - 1
            return index
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN)

    def _open(self) -> tuple[int, Any]:
        # Of each process by itself: locks of a file that two have opened together keep neither out.
        if self._opened is None or self._opened[0] != os.getpid():
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            if _which(file) != self._is:  # the run is over, and its file's number another one's
                os.close(file)
                raise FileNotFoundError(self.path)
            shared = mmap.mmap(file, self.n_places * _CLAIM.itemsize)
            self._opened = os.getpid(), file, np.frombuffer(shared, _CLAIM)
        return self._opened[1:]


def _which(file: int) -> tuple[int, int]:
    """What tells an open file from all others."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino


class Reuse:
    """What has the bytes of an image already: `donors`, a file of jobs.donors', or `claims`."""

    def __init__(self, donors: Path | None, claims: Claims | None) -> None:
        self.donors, self.claims = donors, claims
        self._open()

    def _open(self) -> None:
        self._high = self._low = np.empty(0, np.uint64)
        if self.donors is not None:
            table = map_arrow(self.donors)
            self._high, self._low = (table[name].to_numpy() for name in ("high", "low"))

    def __getstate__(self) -> dict[str, Any]:
        return {"donors": self.donors, "claims": self.claims}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def find(self, index: int, number: int) -> Copy | None:
        """What has the bytes with this hash (`content_hash` as a number); None for none as yet: then
        the image is the first of them.
        """
        high, low = np.uint64(number >> 64), np.uint64(number & ((1 << 64) - 1))
        for place in range(int(np.searchsorted(self._high, high)), len(self._high)):
            if self._high[place] != high:
                break
            if self._low[place] == low:
                return Copy(index, as_digits(number), donor=place)
        if self.claims is None or (first := self.claims.first(number, index)) == index:
            return None
        return Copy(index, as_digits(number), of=first)


def hash_of(data: bytes) -> int:
    """The bytes' content_hash, as a number."""
    return xxhash.xxh3_128_intdigest(data)


def as_digits(number: int) -> str:
    """content_hash as a table has it."""
    return f"{number:032x}"
