"""Thumbnails: small JPEGs of some photos, for people to look at.

Decoded as for the model (the same formats, limits, orientation and scaled JPEG decode), in
processes of their own: a photo that crashes its decoder, hangs or eats the memory costs itself its
thumbnail and nothing else. Nothing here needs torch.
"""

import io
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import xxhash

from pipeline.errors import LabelImagesError
from pipeline.failures import Failure, ImageFacts
from pipeline.find.source import Source
from pipeline.settings import DEFAULT_MAX_PIXELS

from .processes import worker_context
from .read import read_image, stamp

# Part of a thumbnail's name: change it when the same photo would give another one.
THUMBNAIL_RULES = "1"
SIDE = 320  # pixels of the longer side; half of that is what a gallery shows
_QUALITY = 80

_LIMIT_S = 20.0  # for one photo
_START_S = 180.0  # for a process: it imports what decodes, and the machine may be busy
_END_S = 5.0  # for a process that was killed: one that waits for a dead disk stays
_MOST_LOST = 25  # processes that died or hung, before the rest is left out: a disk may be gone


@dataclass(frozen=True)
class Wanted:
    """A photo to make a thumbnail of; None for `source` where its row does not lead to one.

    `content_hash` is what its row says, if it does, and else `stamp`, its size and time of change
    in microseconds: a photo that is another one by now must not stand beside that row's label.
    Without either any photo is taken.
    """

    source: Source | None
    content_hash: str | None = None
    stamp: tuple[int | None, int | None] | None = None


@dataclass(frozen=True)
class NoThumbnail:
    """`code` is one of ERROR_CODES, or: changed (another photo by now), not_tried."""

    code: str


def make_thumbnails(
    wanted: Sequence[Wanted], workers: int | None = None, limit_s: float = _LIMIT_S
) -> Iterator[tuple[int, bytes | NoThumbnail]]:
    """Yield a JPEG for each photo, by its number among `wanted`, in any order."""
    crew = _Crew(wanted, limit_s)
    try:
        yield from crew.work(min(workers or os.cpu_count() or 1, len(wanted)))
    finally:
        crew.end()


class _Crew:
    """Processes with one photo each at a time. Only this one knows which, and for how long."""

    def __init__(self, wanted: Sequence[Wanted], limit_s: float) -> None:
        self.wanted, self.limit_s = wanted, limit_s
        self.lost = 0
        self.todo = iter(range(len(wanted)))
        # By pipe: the photo it is at (None while it starts), since when, and the process.
        self.at: dict[Any, tuple[int | None, float, Any]] = {}

    def work(self, n_workers: int) -> Iterator[tuple[int, bytes | NoThumbnail]]:
        for _ in range(n_workers):
            self._start()
        while self.at:
            ready: list[Any] = wait(list(self.at), timeout=min(self.limit_s, 1.0))
            for pipe in ready:
                number, _, process = self.at[pipe]
                try:
                    made = _opened(pipe.recv_bytes())
                except (EOFError, OSError):
                    process.join(_END_S)
                    killed = process.exitcode == -signal.SIGKILL
                    made = NoThumbnail("out_of_memory" if killed else "decoder_crash")
                    self._replace(pipe)
                else:
                    self._hand_out(pipe, process)
                if number is not None:
                    yield number, made
            for pipe in [pipe for pipe in self.at if self._is_stuck(pipe)]:
                number = self.at[pipe][0]
                self._replace(pipe)
                if number is not None:
                    yield number, NoThumbnail("timeout")
        yield from ((number, NoThumbnail("not_tried")) for number in self.todo)

    def end(self) -> None:
        for pipe in list(self.at):
            self._stop(pipe)

    def _start(self) -> None:
        context = worker_context()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that its death is an end of file here, and no later process has it
        self.at[ours] = (None, time.monotonic(), process)

    def _is_stuck(self, pipe: Any) -> bool:
        number, since, _ = self.at[pipe]
        limit_s = _START_S if number is None else self.limit_s
        # What arrived meanwhile was not late: it may be this process that had other things to do.
        return time.monotonic() - since > limit_s and not pipe.poll()

    def _replace(self, pipe: Any) -> None:
        self._stop(pipe)
        self.lost += 1
        if self.lost < _MOST_LOST:
            self._start()

    def _stop(self, pipe: Any) -> None:
        _, _, process = self.at.pop(pipe)
        process.kill()
        process.join(_END_S)
        pipe.close()

    def _hand_out(self, pipe: Any, process: Any) -> None:
        number = next(self.todo, None) if self.lost < _MOST_LOST else None
        if number is None:
            self._stop(pipe)
            return
        self.at[pipe] = (number, time.monotonic(), process)
        with suppress(OSError):  # it died between two photos: reading from it says so
            pipe.send(self.wanted[number])


def _serve(pipe: Any) -> None:
    """In a process of its own: make one thumbnail after another, until nobody asks."""
    from .decode import register_formats
    from .isolation import limit_memory

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    limit_memory()
    register_formats()
    try:
        pipe.send_bytes(_closed(NoThumbnail("started")))
        while True:
            pipe.send_bytes(_closed(_made(pipe.recv())))
    except (EOFError, OSError):
        os._exit(0)  # past the other process's exit handlers


def _closed(made: bytes | NoThumbnail) -> bytes:
    """As bytes: nothing that comes from where photos are decoded is unpickled."""
    return b"+" + made if isinstance(made, bytes) else b"-" + made.code.encode()


def _opened(message: bytes) -> bytes | NoThumbnail:
    return message[1:] if message[:1] == b"+" else NoThumbnail(message[1:].decode())


def _made(wanted: Wanted) -> bytes | NoThumbnail:
    if wanted.source is None:
        return NoThumbnail("not_found")
    try:
        data = read_image(0, wanted.source)
    except LabelImagesError:  # the table that it lies in has other columns by now
        return NoThumbnail("read_error")
    if isinstance(data, Failure):
        return NoThumbnail(data.code)
    if not _is_the_same(wanted, wanted.source, data):
        return NoThumbnail("changed")
    made = thumbnail(data)
    return NoThumbnail(made.code) if isinstance(made, Failure) else made


def _is_the_same(wanted: Wanted, source: Source, data: bytes) -> bool:
    """Whether what was read is what the row is of. What neither hash nor time tells is not."""
    if wanted.content_hash is not None:
        return xxhash.xxh3_128_hexdigest(data) == wanted.content_hash
    if wanted.stamp is None:
        return True
    now, (size, mtime) = stamp(source), wanted.stamp  # after reading: of no later state
    if now is None or now[1] != mtime:
        return False
    return now[0] is None or now[0] == size  # of a file with many images the size says nothing


def thumbnail(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes | Failure:
    """A JPEG of a photo, without any of its metadata. Never raises for a bad file."""
    from vit.pixels import load_stored

    from .decode import guarded, open_image

    facts = ImageFacts()

    def decode(whole: bytes) -> bytes:
        image = open_image(whole, max_pixels, facts, SIDE // 2)
        stored = load_stored(image, facts.notes, SIDE)
        jpeg = io.BytesIO()
        small = stored.to_thumbnail(SIDE)
        small.info.clear()  # its profile, comments and the place it was taken at stay where they are
        small.save(jpeg, "JPEG", quality=_QUALITY, optimize=True)
        return jpeg.getvalue()

    return guarded(0, data, facts, decode)
