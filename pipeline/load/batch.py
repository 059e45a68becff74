"""Batch: decoded images of one shard, on their way to the model.

One tensor a batch crosses the process border. An image's index travels with it from plan to row;
nothing is matched by position.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from pipeline.failures import Failure, ImageFacts

from .reuse import Copy


@dataclass(frozen=True)
class Batch:
    """Images of one shard, decoded: `images` uint8 [B, C, H, W] belong to `indices` [B] and `facts`
    [B]. `failures` and `copies` are its other images.
    """

    shard: int
    indices: list[int]
    images: Tensor
    facts: list[ImageFacts]
    failures: list[Failure]
    read_s: float  # a worker's time spent on reading its files
    decode_s: float  # and its computing time spent on decoding them
    copies: list[Copy] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices) + len(self.failures) + len(self.copies)

    @property
    def first(self) -> int:
        """The least index of its images."""
        failed = [failure.index for failure in self.failures]
        return min(self.indices + failed + [copy.index for copy in self.copies])

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, which a GPU copies from without waiting."""
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


class WallClock(Clock):
    """Of a batch that another process decodes: the time until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()

    @property
    def decode_s(self) -> float:
        return time.perf_counter() - self.began
