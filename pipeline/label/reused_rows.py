"""Copies -> rows: an image with the bytes of another gets that one's label, and embedding.

Taken from a row of the table that the job began with, or from an image of this run. A shard's copies
wait until all its other images are there, so that the rows of a table are looked up together. Nothing
is taken on trust: the row must have the hash of the copy's bytes, and where it has not, since a file
changed between two looks or its decoder crashed, the copy is decoded by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.load.batch import Batch
from pipeline.load.reuse import Copy
from pipeline.table.partitioned import rows_by_number
from pipeline.table.record import PRODUCTS

from .labeller import Run
from .rows import Rows
from .shard_writer import ShardWriter

Tables = dict[str, pa.Table]  # rows by product


@dataclass
class _Waiting:
    """The copies of one shard."""

    left: int  # of its images have not come
    copies: list[Copy] = field(default_factory=list)


class ReusedRows:
    """Adds the rows of copies to their shards."""

    def __init__(self, run: Run, rows: Rows, writer: ShardWriter, donors: pa.Table | None) -> None:
        self.run, self.rows, self.writer, self.donors = run, rows, writer, donors
        self._no_copies: list[int] = []
        self._shards: dict[int, _Waiting] = {}
        self._has_come = np.zeros(run.manifest.n_images, np.bool_)

    def add(self, batch: Batch) -> None:
        """Take note of a batch whose other rows the writer has, and add those of copies that are due."""
        n_rows = self.run.manifest.shard_rows(batch.shard)
        waiting = self._shards.setdefault(batch.shard, _Waiting(n_rows))
        waiting.left -= len(batch)
        waiting.copies += batch.copies
        self._has_come[batch.indices] = True
        self._has_come[[failure.index for failure in batch.failures]] = True
        while due := [shard for shard, each in self._shards.items() if self._is_due(each)]:
            for shard in due:
                self._add(shard, self._shards.pop(shard).copies)

    def decoded_apart(self, batch_size: int) -> Iterator[list[int]]:
        """The copies to be decoded after all, a batch of one shard at a time. Call it when all images
        have come.
        """
        # What they wait for became a copy itself, or is to be decoded apart, too.
        for waiting in self._shards.values():
            self._no_copies += [copy.index for copy in waiting.copies]
        shard_size = self.run.manifest.shard_size
        for _, of_shard in groupby(sorted(self._no_copies), lambda index: index // shard_size):
            indices = list(of_shard)
            for first in range(0, len(indices), batch_size):
                yield indices[first : first + batch_size]

    def _is_due(self, waiting: _Waiting) -> bool:
        return not waiting.left and all(
            copy.of is None or self._has_come[copy.of] for copy in waiting.copies
        )

    def _add(self, shard: int, copies: Sequence[Copy]) -> None:
        donors = [(copy, copy.donor) for copy in copies if copy.donor is not None]
        firsts = [(copy, copy.of) for copy in copies if copy.of is not None]
        for pairs, found in ((donors, self._of_table), (firsts, self.writer.rows)):
            if pairs:
                self._take(shard, [copy for copy, _ in pairs], found([of for _, of in pairs]))

    def _of_table(self, places: Sequence[int]) -> Tables:
        """The rows of some donors, in the table that the job began with and in other products."""
        assert self.donors is not None
        found, donors = Tables(), self.donors.take(pa.array(places))
        for name in self.run.manifest.products:
            # Looked up in the order they lie in, and each once.
            numbers, which = np.unique(donors[name].to_numpy(), return_inverse=True)
            place = self.run.settings.places[name]
            rows = pa.concat_tables(rows_by_number(PRODUCTS[name], place, numbers))
            found[name] = rows.take(pa.array(which))
        return found

    def _take(self, shard: int, copies: Sequence[Copy], found: Tables) -> None:
        """Give copies the rows found for them, in the same order."""
        hashes = pa.array([copy.content_hash for copy in copies])
        is_same = np.ones(len(copies), np.bool_)
        for rows in found.values():
            same = pc.fill_null(pc.equal(rows["content_hash"], hashes), False)
            is_same &= same.to_numpy()
        self._no_copies += [copies[n].index for n in np.flatnonzero(~is_same).tolist()]
        if is_same.any():
            indices = [copies[n].index for n in np.flatnonzero(is_same).tolist()]
            taken = {
                name: self.rows.of_copies(indices, rows.filter(pa.array(is_same)))
                for name, rows in found.items()
            }
            self.writer.add(shard, taken, are_reused=True)
            self._has_come[indices] = True
