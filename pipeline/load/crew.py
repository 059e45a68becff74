"""Crew: the workers of a DataLoader, as the process that waits for their batches knows them.

It owns what both sides share: when each worker began with the image it is at, which batches were
handed out and did not arrive, and how a batch travels, in shared memory or through a pipe.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.console import Console

from .batch import Batch
from .decode import register_formats
from .image_dataset import BatchDataset
from .isolation import limit_memory
from .processes import end_with_main_process

SHARED_MEMORY = "/dev/shm"
_LOOK_EVERY_S = 1.0  # for workers that died or are stuck
_LOST_AFTER_S = 10.0  # without a batch while no worker is at one: it was lost on its way
_PREFETCH = 2  # batches a worker may be ahead


class WorkerLost(Exception):
    """A worker died or is stuck, or a batch was lost on its way; the message says which."""


class Crew:
    """Workers that turn indices into batches. They may be lost, and others started in their place."""

    def __init__(
        self, dataset: BatchDataset, indices: Iterable[list[int]], batch_size: int, workers: int
    ) -> None:
        self.dataset, self.workers = dataset, workers
        self.undelivered: dict[int, list[int]] = {}  # by first index
        self._left = iter(indices)
        # The batches of each worker, the one it is at, and a few that this process is still using.
        self._bytes_needed = dataset.batch_bytes(batch_size) * (workers * (_PREFETCH + 1) + 3)
        self._by_pipe = False
        self._busy_since: Any = []  # by worker, shared with it; 0 between two batches
        self._parcels: Iterator[Parcel] = iter(())
        self._processes: list[Any] = []

    def hand_out(self) -> Iterator[list[int]]:
        """Yield the indices of each batch, once."""
        for indices in self._left:
            self.undelivered[indices[0]] = indices
            yield indices

    def delivered(self, batch: Batch) -> None:
        del self.undelivered[batch.first]

    def choose_transport(self, console: Console) -> None:
        """Let batches travel through pipes where shared memory is too small for them."""
        if not self._by_pipe and self._bytes_needed > (free := _free_shared_memory()):
            console.info(
                "by_pipe",
                f"{SHARED_MEMORY} has {free >> 20:,} MB free, and {self._bytes_needed >> 20:,} "
                "are needed: batches come through pipes, which is slower (with Docker, --shm-size "
                "makes it larger)",
            )
            self._by_pipe = True

    def start(self, context: Any, pin_memory: bool, in_order: bool) -> None:
        """Start the workers: they begin at once with what is left."""
        self._busy_since = multiprocessing.RawArray("d", self.workers)
        loader = DataLoader(
            _Worker(self.dataset, self._busy_since, self._by_pipe),
            batch_size=None,  # what is handed out are whole batches already
            sampler=self.hand_out(),
            num_workers=self.workers,
            prefetch_factor=_PREFETCH,
            pin_memory=pin_memory,
            in_order=in_order,
            timeout=_LOOK_EVERY_S,
            worker_init_fn=_begin,
            multiprocessing_context=context,
        )
        before, others = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
        try:
            self._parcels = iter(loader)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # gone since the locks were tried
                error.filename = SHARED_MEMORY
            raise
        self._processes = [
            process for process in multiprocessing.active_children() if process not in others
        ]
        # torch would raise for a dead worker wherever this process is; asked for a batch it says so
        # too.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)

    def batches(self, image_timeout_s: float) -> Iterator[Batch]:
        """Yield the batches as they arrive. Raises WorkerLost, and what was a fault of ours."""
        last = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                parcel = next(self._parcels, None)
            except (RuntimeError, OSError, EOFError):
                # torch raises the same error where it waited in vain and where a worker died; and a
                # batch on its way loses its sender, which shows in many ways. To have waited is no
                # loss as long as all live.
                waited = time.monotonic() - asked > _LOOK_EVERY_S * 0.9
                if not waited or not all(process.is_alive() for process in self._processes):
                    raise WorkerLost("it died") from None
                if self._is_stuck(image_timeout_s):
                    raise WorkerLost("one image takes too long") from None
                if self._is_idle and time.monotonic() - last > _LOST_AFTER_S:
                    raise WorkerLost("a batch never arrived") from None
                continue
            if parcel is None:
                return
            batch = parcel.open()
            self.delivered(batch)
            yield batch
            last = time.monotonic()

    def end(self) -> None:
        """End the workers that are left."""
        self._parcels = iter(())
        self._processes = []

    def _is_stuck(self, limit_s: float) -> bool:
        """Whether some worker has been at one image for longer than `limit_s`."""
        return any(since and time.monotonic() - since > limit_s for since in self._busy_since)

    @property
    def _is_idle(self) -> bool:
        """Whether no worker is at any image."""
        return not any(self._busy_since)


@dataclass(frozen=True)
class Parcel:
    """What a worker sends: a batch, or the fault of ours that it ran into."""

    batch: Batch | None
    fault: tuple[type[Exception], str] | None = None  # with its traceback
    by_pipe: bool = False  # the images as bytes, not in shared memory

    @classmethod
    def of_fault(cls, error: Exception) -> "Parcel":
        return cls(None, (type(error), traceback.format_exc()))

    def open(self) -> Batch:
        """The batch. Raises the fault, of its own type where that can be made of a text."""
        if self.batch is not None:
            return self.batch
        assert self.fault is not None
        kind, text = self.fault
        text = f"in a decoding process:\n{text}"
        try:
            error = kind(text)
        except Exception:  # noqa: BLE001 - whatever it takes to make one
            error = RuntimeError(text)
        raise error

    def pin_memory(self) -> "Parcel":
        """For the DataLoader: page-locked memory, which a GPU copies from without waiting."""
        try:
            return replace(self, batch=self.batch and self.batch.pin_memory())
        except Exception as error:  # noqa: BLE001 - raised where the parcel is opened
            return Parcel.of_fault(error)

    def __reduce__(self) -> Any:
        if self.by_pipe and self.batch is not None:
            without = replace(self.batch, images=torch.empty(0))
            return _unpacked, (without, self.batch.images.numpy())
        return Parcel, (self.batch, self.fault)


def _unpacked(batch: Batch, images: Any) -> Parcel:
    return Parcel(replace(batch, images=torch.from_numpy(images)))


class _Worker(Dataset[Parcel]):
    """What a worker does: it says when it begins with an image, and sends what it makes."""

    def __init__(self, dataset: BatchDataset, busy_since: Any, by_pipe: bool) -> None:
        self.dataset, self.busy_since, self.by_pipe = dataset, busy_since, by_pipe
        self.is_ready = False

    def __getitem__(self, indices: list[int]) -> Parcel:
        worker = get_worker_info()
        assert worker is not None
        number = worker.id

        def begin() -> None:
            self.busy_since[number] = time.monotonic()

        try:
            if not self.is_ready:
                limit_memory()
                register_formats()
                self.is_ready = True
            return Parcel(self.dataset.make_batch(indices, begin), by_pipe=self.by_pipe)
        except Exception as error:  # noqa: BLE001 - raised where the parcel is opened
            return Parcel.of_fault(error)
        finally:
            self.busy_since[number] = 0


def _free_shared_memory() -> int:
    """The bytes free where torch puts the tensors that one process hands another."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:  # not Linux, where it is not a file system
        return sys.maxsize
    return room.f_bavail * room.f_frsize


def _begin(worker_id: int) -> None:
    """The first thing that a worker does."""
    # Ctrl-C reaches all; the main process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _ignore_disconnects
    # torch looks every few seconds whether a worker has another parent than when it began: one that
    # lost its parent before that would wait for ever.
    end_with_main_process()


def _ignore_disconnects(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing where a batch on its way loses its receiver: the run was interrupted, and has
    said so.
    """
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)
