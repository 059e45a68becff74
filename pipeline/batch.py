"""A Batch, and how a worker makes one: indices -> read, decoded and gathered images.

One tensor a batch crosses the process border. An image's index travels with it from plan to row;
nothing is matched by position. Paths stay in Arrow, shared with the workers: a Python list of them
would be copied into each worker bit by bit.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vit.preprocess import Preprocess

from .decode import decode_image
from .names import unescape_name
from .read import read_image
from .samples import Failure, ImageFacts, Sample


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
    by_pipe: bool = False  # to another process: the images as bytes through a pipe, not in shared memory

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"images": self.images.numpy()} if self.by_pipe else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"images": torch.as_tensor(state["images"])})

    def __len__(self) -> int:
        return len(self.indices) + len(self.failures)

    def pin_memory(self) -> "Batch":
        """For the DataLoader: page-locked memory, which a GPU copies from without waiting."""
        return replace(self, images=self.images.pin_memory())


class Clock:
    """A worker's time for a batch.

    Decoding counts computing time only: on a busy machine a worker often has to wait for a core.
    """

    def __init__(self) -> None:
        self.started = time.thread_time()
        self.read_s = self._reading_compute_s = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        wall, compute = time.perf_counter(), time.thread_time()
        yield
        self.read_s += time.perf_counter() - wall
        self._reading_compute_s += time.thread_time() - compute

    @property
    def decode_s(self) -> float:
        return time.thread_time() - self.started - self._reading_compute_s


def locate(root: str, path: str) -> bytes:
    """Where an image lies, as the bytes the operating system knows it by."""
    return os.path.join(unescape_name(root), unescape_name(path))


class BatchDataset(Dataset[Batch]):
    """The images of a plan, a batch at a time: `dataset[indices]` decodes them into a Batch.

    `pending` has the schema jobs.plan.PENDING; all indices of a batch lie in one shard.
    """

    def __init__(self, pending: pa.Table, shard_size: int, preprocess: Preprocess, max_pixels: int) -> None:
        self.root, self.path = (pending[name].combine_chunks() for name in ("root", "path"))
        self.shard_size = shard_size
        self.preprocess = preprocess
        self.max_pixels = max_pixels
        self.busy_since: Any = []
        self.by_pipe = False

    def batch_bytes(self, batch_size: int) -> int:
        """How much memory the images of a batch take."""
        return batch_size * self.preprocess.in_chans * self.preprocess.crop_size**2

    def watch(self, workers: int) -> None:
        """Make room, shared with the workers to be started, for when each began with the image it is at; 0 for none."""
        self.busy_since = multiprocessing.RawArray("d", workers)

    def location(self, index: int) -> bytes:
        return locate(self.root[index].as_py(), self.path[index].as_py())

    def __getitem__(self, indices: list[int]) -> Batch:
        worker, clock = get_worker_info(), Clock()
        results = []
        for index in indices:
            if worker:
                self.busy_since[worker.id] = time.monotonic()
            results.append(self.load(index, clock))
        if worker:
            self.busy_since[worker.id] = 0
        return self.gather(results, clock)

    def is_stuck(self, limit_s: float) -> bool:
        """Whether some worker has been at one image for longer than `limit_s`."""
        return any(since and time.monotonic() - since > limit_s for since in self.busy_since)

    @property
    def is_idle(self) -> bool:
        """Whether no worker is at any image."""
        return not any(self.busy_since)

    def load(self, index: int, clock: Clock) -> Sample | Failure:
        """Read and decode one image."""
        with clock.reading():
            data = read_image(index, self.location(index))
        return decode_image(index, data, self.preprocess, self.max_pixels) if isinstance(data, bytes) else data

    def gather(self, results: list[Sample | Failure], clock: Clock) -> Batch:
        """Make a batch of what images of one shard became."""
        samples = [result for result in results if isinstance(result, Sample)]
        size = self.preprocess.crop_size
        images = torch.empty((len(samples), self.preprocess.in_chans, size, size), dtype=torch.uint8)
        for image, sample in zip(images, samples, strict=True):
            image.copy_(sample.pixels)
        return Batch(
            shard=results[0].index // self.shard_size,
            indices=[sample.index for sample in samples],
            images=images,
            facts=[sample.facts for sample in samples],
            failures=[result for result in results if isinstance(result, Failure)],
            read_s=clock.read_s,
            decode_s=clock.decode_s,
            by_pipe=self.by_pipe,
        )
