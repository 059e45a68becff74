"""BatchDataset: how a worker makes a batch: indices -> read, decoded and gathered images.

Paths stay in Arrow, shared with the workers: a Python list of them would be copied into each worker
bit by bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import Dataset

from jobs.storage.arrow import map_arrow
from jobs.storage.object_store import REQUESTS_AT_ONCE, AnyPath
from pipeline.failures import Failure
from pipeline.find.source import Sources
from pipeline.load.decode import decode_image
from vit.preprocess import Preprocess

from .batch import Batch, Clock
from .read import read_image
from .reuse import Copy, Reuse, as_digits, hash_of
from .sample import Sample

Loaded = Sample | Copy | Failure  # what becomes of one image


class BatchDataset(Dataset[Batch]):
    """The images of a plan, a batch at a time: `dataset[indices]` decodes them into a Batch.

    `plan` is a listing (jobs.plan.LISTING), or the file that holds it: that is what a process
    started anew maps too, where a table would have to be copied to it. `places` are the PATHs, which
    say how to connect to stores. All indices of a batch lie in one shard.
    """

    def __init__(
        self,
        plan: pa.Table | Path,
        shard_size: int,
        preprocess: Preprocess,
        max_pixels: int,
        image_column: str | None = None,
        places: Sequence[AnyPath] = (),
    ) -> None:
        self.plan = plan
        self.shard_size = shard_size
        self.preprocess = preprocess
        self.max_pixels = max_pixels
        self.image_column = image_column
        self.places = tuple(places)
        self.reuse: Reuse | None = None
        self._open()

    def with_reuse(self, reuse: Reuse) -> "BatchDataset":
        """The same images, but what has a label already is not decoded: it becomes a Copy."""
        same = copy(self)
        same.reuse = reuse
        return same

    def _open(self) -> None:
        listing = map_arrow(self.plan) if isinstance(self.plan, Path) else self.plan
        self.sources = Sources(listing, self.image_column, self.places)
        self._readers: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sources": None, "_readers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def batch_bytes(self, batch_size: int) -> int:
        """How much memory the images of a batch take."""
        return batch_size * self.preprocess.in_chans * self.preprocess.crop_size**2

    def __getitem__(self, indices: list[int]) -> Batch:
        return self.make_batch(indices, lambda: None)

    def make_batch(self, indices: list[int], begin: Callable[[], None]) -> Batch:
        """Decode some images; `begin` is called before each."""
        clock, results = Clock(), []
        reading = self._read_ahead(indices)
        for index in indices:
            begin()
            results.append(self.load(index, clock, reading.pop(index, None)))
        return self.gather(results, clock)

    def _read_ahead(self, indices: list[int]) -> dict[int, "Future[bytes | Failure]"]:
        """Begin to read what lies in a store, many at once: there an answer takes long, and not its
        bytes. But the rows of a table: they come out of one stream, and so one after the other.
        """
        if not self.sources.stores:
            return {}
        self._readers = self._readers or ThreadPoolExecutor(
            REQUESTS_AT_ONCE, thread_name_prefix="read"
        )
        sources = {index: self.sources[index] for index in indices}
        return {
            index: self._readers.submit(read_image, index, source)
            for index, source in sources.items()
            if source.column is None
        }

    def load(
        self, index: int, clock: Clock, reading: "Future[bytes | Failure] | None" = None
    ) -> Loaded:
        """Read one image, unless that is under way, and decode it, unless it is a copy."""
        with clock.reading():
            data = reading.result() if reading else read_image(index, self.sources[index])
        if isinstance(data, Failure):
            return data
        number = hash_of(data)
        if self.reuse and (found := self.reuse.find(index, number)):
            return found
        return decode_image(
            index, data, self.preprocess, self.max_pixels, content_hash=as_digits(number)
        )

    def gather(self, results: Sequence[Loaded], clock: Clock) -> Batch:
        """Make a batch of what images of one shard became."""
        samples = [result for result in results if isinstance(result, Sample)]
        size = self.preprocess.crop_size
        images = torch.empty(
            (len(samples), self.preprocess.in_chans, size, size), dtype=torch.uint8
        )
        for image, sample in zip(images, samples, strict=True):
            image.copy_(sample.pixels)
        return Batch(
            shard=results[0].index // self.shard_size,
            indices=[sample.index for sample in samples],
            images=images,
            facts=[sample.facts for sample in samples],
            failures=[result for result in results if isinstance(result, Failure)],
            copies=[result for result in results if isinstance(result, Copy)],
            read_s=clock.read_s,
            decode_s=clock.decode_s,
        )
