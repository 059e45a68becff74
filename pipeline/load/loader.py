"""The DataLoader: workers turn indices into finished uint8 batches, and may die at it.

sampler      one batch's indices, never across a shard
worker       decodes each image and gathers a Batch (batch.py)
survival     what a dead or stuck worker held is decoded one by one (isolation.py), new workers go on
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Sampler

from pipeline.console import Console

from .batch import Batch, WallClock
from .decode import register_formats
from .image_dataset import BatchDataset
from .isolation import limit_memory, load_isolated
from .processes import worker_context

_LOOK_EVERY_S = 1.0  # for workers that died or are stuck
_LOST_AFTER_S = 10.0  # without a batch while no worker is at one: it was lost on its way
_PREFETCH = 2  # batches a worker may be ahead
_SHARED_MEMORY = "/dev/shm"


class ShardBatchSampler(Sampler[list[int]]):
    """Batches of consecutive indices that never cross a shard, for the given shards in order."""

    def __init__(
        self, n_images: int, shard_size: int, shards: Sequence[int], batch_size: int
    ) -> None:
        self.n_images, self.shard_size, self.shards, self.batch_size = (
            n_images,
            shard_size,
            shards,
            batch_size,
        )

    def __iter__(self) -> Iterator[list[int]]:
        for shard in self.shards:
            end = min((shard + 1) * self.shard_size, self.n_images)
            for start in range(shard * self.shard_size, end, self.batch_size):
                yield list(range(start, min(start + self.batch_size, end)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _HandedOut(Sampler[list[int]]):
    """Batches of a sampler, each handed out once, and those that workers have and did not deliver
    yet.
    """

    def __init__(self, sampler: ShardBatchSampler) -> None:
        self.left = iter(sampler)
        self.undelivered: dict[int, list[int]] = {}  # by first index

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.left:
            self.undelivered[indices[0]] = indices
            yield indices

    def delivered(self, batch: Batch) -> None:
        del self.undelivered[min(batch.indices + [failure.index for failure in batch.failures])]


def load_batches(
    dataset: BatchDataset,
    sampler: ShardBatchSampler,
    workers: int,
    console: Console,
    image_timeout_s: float,
    pin_memory: bool = False,
    in_order: bool = False,
) -> Iterator[Batch]:
    """Start the workers at once and return the batches they will deliver.

    At once, because workers are forked (but where a store is used): best while this process runs no
    threads of the model's. With 0 workers the images are decoded in this process, when asked for.
    Batches come as they get finished, so that large photos hold nobody up, or `in_order`.

    Where a worker dies, or is at one image for `image_timeout_s`, the batches that were lost are
    decoded image by image (isolation.py), and new workers go on with the rest.

    Batches come through shared memory, or through pipes where that is too small for them. Where
    there is none that can be written to, not even workers can be had: then one process at a time
    decodes, a batch each.
    """
    if workers == 0:
        register_formats()
        return (dataset[indices] for indices in sampler)
    handed_out = _HandedOut(sampler)

    def start() -> Iterator[Batch]:
        context = worker_context() if sys.platform == "linux" else None
        if context and (obstacle := _no_room_for_locks(context, workers)):
            console.warn(
                "no_shared_memory",
                f"{_SHARED_MEMORY} cannot be used ({obstacle}), which decoding processes need for "
                f"their locks: one of "
                "them at a time decodes, and the model waits for it. Mount it so that it can be "
                "written to (with "
                "Docker --shm-size=1g, and no read-only mount over it)",
            )
            return (_decoded_apart(dataset, indices, image_timeout_s) for indices in handed_out)
        dataset.watch(workers)
        # Each worker's batches, the one it is at, and a few that this process is still using.
        needed = dataset.batch_bytes(sampler.batch_size) * (workers * (_PREFETCH + 1) + 3)
        if not dataset.by_pipe and needed > (free := _free_shared_memory()):
            console.info(
                "by_pipe",
                f"{_SHARED_MEMORY} has {free >> 20:,} MB free, and {needed >> 20:,} are needed: "
                f"batches come "
                "through pipes, which is slower (with Docker, --shm-size makes it larger)",
            )
            dataset.by_pipe = True
        loader = DataLoader(
            dataset,
            batch_size=None,  # the sampler's items are whole batches already
            sampler=handed_out,
            num_workers=workers,
            prefetch_factor=_PREFETCH,
            pin_memory=pin_memory,
            in_order=in_order,
            timeout=_LOOK_EVERY_S,
            worker_init_fn=_start_worker,
            multiprocessing_context=context,
        )
        before = signal.getsignal(signal.SIGCHLD)
        try:
            batches = iter(loader)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # gone since the locks were tried
                error.filename = _SHARED_MEMORY
            raise
        # torch would raise for a dead worker wherever this process is; asked for a batch it says so
        # too.
        signal.signal(signal.SIGCHLD, before)
        return batches

    return _surviving(start, start(), dataset, handed_out, console, image_timeout_s)


def _surviving(
    start: Callable[[], Iterator[Batch]],
    batches: Iterator[Batch] | None,
    dataset: BatchDataset,
    handed_out: _HandedOut,
    console: Console,
    image_timeout_s: float,
) -> Iterator[Batch]:
    last = time.monotonic()
    while batches is not None:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught "):
                raise  # a worker's own exception: a fault of ours, no file's
            # Beside torch's RuntimeError: a batch on its way loses its sender, which shows in many
            # ways.
            reason = "it died"
            if "DataLoader timed out" in str(error):
                if dataset.is_stuck(image_timeout_s):
                    reason = "one image takes too long"
                elif dataset.is_idle and time.monotonic() - last > _LOST_AFTER_S:
                    reason = "a batch never arrived"
                else:
                    continue
        else:
            handed_out.delivered(batch)
            yield batch
            last = time.monotonic()
            continue
        batches = None  # ends what is left of the workers
        lost = list(handed_out.undelivered.values())
        n_lost = sum(map(len, lost))
        message = f"a decoding process was lost ({reason}); {n_lost} images are decoded one by one"
        console.warn("worker_lost", message, {"images": n_lost})
        for indices in lost:
            batch = _decoded_apart(dataset, indices, image_timeout_s)
            handed_out.delivered(batch)
            yield batch
        batches, last = start(), time.monotonic()


def _decoded_apart(dataset: BatchDataset, indices: list[int], image_timeout_s: float) -> Batch:
    """A batch decoded in a process of its own, one image after another."""
    clock = WallClock()
    return dataset.gather(
        load_isolated(partial(dataset.load, clock=clock), indices, image_timeout_s), clock
    )


def _no_room_for_locks(context: Any, workers: int) -> str | None:
    """Why the locks of a DataLoader's queues cannot be made; None where they can."""
    try:
        # Three for the queue of each worker, three for that of the batches and five for an event.
        # Tried here, since a DataLoader that fails half-way is noisy when it goes.
        locks = [context.Lock() for _ in range(3 * workers + 8)]
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOENT,
            errno.ENOSYS,
        ):
            raise
        return error.strerror or str(error)
    locks.clear()
    return None


def _free_shared_memory() -> int:
    """The bytes free where torch puts the tensors that one process hands another."""
    try:
        room = os.statvfs(_SHARED_MEMORY)
    except OSError:  # not Linux, where it is not a file system
        return sys.maxsize
    return room.f_bavail * room.f_frsize


def _start_worker(worker_id: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all; the main process ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _ignore_disconnects
    limit_memory()
    register_formats()


def _ignore_disconnects(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing where a batch on its way loses its receiver: the run was interrupted, and has
    said so.
    """
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)
