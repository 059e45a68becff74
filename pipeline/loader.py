"""The DataLoader: workers turn indices into finished uint8 batches.

    sampler   one batch's indices, never across a shard
    worker    decodes each image and gathers a Batch, so that one tensor crosses the process border

An image's index travels with it from plan to row; nothing is matched by position. Paths stay in
Arrow, shared with the workers: a Python list of them would be copied into each worker bit by bit.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vit.preprocess import Preprocess

from .decode import decode_image, register_formats
from .errors import LabelImagesError
from .names import unescape_name
from .read import read_image
from .samples import Failure, ImageFacts, Sample

_SIGNAL_ARRIVES_S = 0.5


@dataclass(frozen=True)
class Batch:
    """Images of one shard, decoded: `images` uint8 [B, C, H, W] belong to `indices` [B] and `facts` [B]."""

    shard: int
    indices: list[int]
    images: Tensor
    facts: list[ImageFacts]
    failures: list[Failure]
    read_s: float  # a worker's time spent on reading its files
    decode_s: float  # and its computing time spent on decoding them

    def __len__(self) -> int:
        return len(self.indices) + len(self.failures)

    def pin_memory(self) -> "Batch":
        """For the DataLoader: page-locked memory, which a GPU copies from without waiting."""
        return replace(self, images=self.images.pin_memory())


class BatchDataset(Dataset[Batch]):
    """The images of a plan, a batch at a time: `dataset[indices]` decodes them into a Batch.

    `pending` has the schema jobs.plan.PENDING; all indices of a batch lie in one shard.
    """

    def __init__(self, pending: pa.Table, shard_size: int, preprocess: Preprocess, max_pixels: int) -> None:
        self.root, self.path = (pending[name].combine_chunks() for name in ("root", "path"))
        self.shard_size = shard_size
        self.preprocess = preprocess
        self.max_pixels = max_pixels

    def location(self, index: int) -> bytes:
        """Where an image lies, as the bytes the operating system knows it by."""
        return os.path.join(unescape_name(self.root[index].as_py()), unescape_name(self.path[index].as_py()))

    def __getitem__(self, indices: list[int]) -> Batch:
        # Computing time: on a busy machine a worker often has to wait for a core, which is not decoding's cost.
        started, read_s, reading_s = time.thread_time(), 0.0, 0.0
        results: list[Sample | Failure] = []
        for index in indices:
            before = time.perf_counter(), time.thread_time()
            data = read_image(index, self.location(index))
            read_s += time.perf_counter() - before[0]
            reading_s += time.thread_time() - before[1]
            if isinstance(data, bytes):
                results.append(decode_image(index, data, self.preprocess, self.max_pixels))
            else:
                results.append(data)
        samples = [result for result in results if isinstance(result, Sample)]
        size = self.preprocess.crop_size
        images = torch.empty((len(samples), self.preprocess.in_chans, size, size), dtype=torch.uint8)
        for image, sample in zip(images, samples, strict=True):
            image.copy_(sample.pixels)
        return Batch(
            shard=indices[0] // self.shard_size,
            indices=[sample.index for sample in samples],
            images=images,
            facts=[sample.facts for sample in samples],
            failures=[result for result in results if isinstance(result, Failure)],
            read_s=read_s,
            decode_s=time.thread_time() - started - reading_s,
        )


class ShardBatchSampler(Sampler[list[int]]):
    """Batches of consecutive indices that never cross a shard, for the given shards in order."""

    def __init__(self, n_images: int, shard_size: int, shards: Sequence[int], batch_size: int) -> None:
        self.n_images, self.shard_size, self.shards, self.batch_size = n_images, shard_size, shards, batch_size

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
    pin_memory: bool = False,
    in_order: bool = False,
) -> Iterator[Batch]:
    """Start the workers at once and return the batches they will deliver.

    At once, because workers are forked: best while this process runs no threads of the model's.
    With 0 workers the images are decoded in this process, when asked for. Batches come as they get
    finished, so that large photos hold nobody up, or `in_order`.
    """
    if workers == 0:
        register_formats()
    loader = DataLoader(
        dataset,
        batch_size=None,  # the sampler's items are whole batches already
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        in_order=in_order,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    return iter(loader)


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Turn torch's error for a dead worker, which it raises wherever the main process is, into one of ours."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # A signal to the whole process group ends workers too: let it arrive here, where it means Interrupted.
        time.sleep(_SIGNAL_ARRIVES_S)
        raise LabelImagesError(
            f"a decoding process died ({str(error).splitlines()[0]}), perhaps for want of memory; finished shards "
            "are kept: run the same command again, with fewer --workers if it happens again"
        ) from error


def _start_worker(worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _ignore_disconnects
    register_formats()


def _ignore_disconnects(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing where a batch on its way loses its receiver: the run was interrupted, and has said so."""
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)
