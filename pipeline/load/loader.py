"""The DataLoader: workers turn indices into finished uint8 batches, and may die at it.

sampler      one batch's indices, never across a shard
worker       decodes each image and gathers a Batch (batch.py); what is known of it: crew.py
survival     what a dead or stuck worker held is decoded one by one (isolation.py), new workers go on
"""

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import Sampler

from pipeline.console import Console
from pipeline.so_many import so_many

from .batch import Batch, WallClock
from .crew import SHARED_MEMORY, Crew, WorkerLost
from .decode import register_formats
from .image_dataset import BatchDataset
from .isolation import load_isolated
from .processes import worker_context


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
    crew = Crew(dataset, sampler, sampler.batch_size, workers)

    def start() -> bool:
        """Start workers; return whether there can be any."""
        context = worker_context() if sys.platform == "linux" else None
        if context and (obstacle := _no_room_for_locks(context, workers)):
            console.warn(
                "no_shared_memory",
                f"{SHARED_MEMORY} cannot be used ({obstacle}), which decoding processes need for "
                "their locks: one of them at a time decodes, and the model waits for it. Mount it "
                "so that it can be written to (with Docker --shm-size=1g, and no read-only mount "
                "over it)",
            )
            return False
        crew.choose_transport(console)
        crew.start(context, pin_memory, in_order)
        return True

    return _surviving(start, start(), crew, console, image_timeout_s)


def _surviving(
    start: Callable[[], bool],
    has_workers: bool,
    crew: Crew,
    console: Console,
    image_timeout_s: float,
) -> Iterator[Batch]:
    while has_workers:
        try:
            yield from crew.batches(image_timeout_s)
            return
        except WorkerLost as lost:
            reason = str(lost)
        crew.end()
        n_lost = sum(map(len, crew.undelivered.values()))
        images = so_many(n_lost, "image is", "images are")
        message = f"a decoding process was lost ({reason}); {images} decoded one by one"
        console.warn("worker_lost", message, {"images": n_lost})
        for indices in list(crew.undelivered.values()):
            batch = decoded_apart(crew.dataset, indices, image_timeout_s)
            crew.delivered(batch)
            yield batch
        has_workers = start()
    for indices in crew.hand_out():
        yield decoded_apart(crew.dataset, indices, image_timeout_s)


def decoded_apart(dataset: BatchDataset, indices: list[int], image_timeout_s: float) -> Batch:
    """A batch decoded in a process of its own, one image after another."""
    clock = WallClock()
    loaded = load_isolated(partial(dataset.load, clock=clock), indices, image_timeout_s)
    return dataset.gather(loaded, clock)


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
