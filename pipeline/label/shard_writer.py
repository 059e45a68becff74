"""Rows -> committed shards, off the main thread: the model need not wait for the disk."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.keys import one_array
from jobs.manifest import Manifest
from jobs.receipts import Provenance
from jobs.storage.arrow import read_parquet
from pipeline.errors import TimeIsUp
from pipeline.table.labels import LABELS
from pipeline.table.record import PRODUCTS


class ShardWriter:
    """Gathers rows until a shard has all of its own, then commits it. A context manager.

    At most one commit is under way, so that a slow disk slows the run down instead of filling the
    memory. However the `with` ends, the commit under way is finished: its images are labelled.
    """

    def __init__(self, job: Job, manifest: Manifest, run_id: str, made_by: Provenance) -> None:
        self.job, self.manifest, self.run_id, self.made_by = job, manifest, run_id, made_by
        self.write_s = 0.0
        self.n_rows = 0  # of shards that are whole
        self._unfinished: dict[int, list[dict[str, pa.Table]]] = {}
        self._reused: Counter[int] = Counter()  # labelled rows by shard
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._commit: Future[None] | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if isinstance(error, TimeIsUp):
            self._wait()  # what kept the last commit from the disk is worse than the time
        if error is None:
            self._wait()
            assert not self._unfinished, "a shard was left unfinished"

    def add(self, shard: int, rows: dict[str, pa.Table], are_reused: bool = False) -> None:
        """Take some rows of a shard, by product. Raises what a commit before this one ran into.

        Rows that `are_reused` were taken from other images with the same bytes.
        """
        batches = self._unfinished.setdefault(shard, [])
        batches.append(rows)
        if are_reused:
            is_ok = pc.equal(rows[LABELS.name]["status"], "ok")
            self._reused[shard] += pc.sum(is_ok, min_count=0).as_py()
        n_rows = sum(len(next(iter(batch.values()))) for batch in batches)
        if n_rows == self.manifest.shard_rows(shard):
            self._wait()
            self.n_rows += self.manifest.shard_rows(shard)
            self._commit = self._thread.submit(self._write, shard, self._unfinished.pop(shard))

    def rows(self, indices: Sequence[int]) -> dict[str, pa.Table]:
        """The rows of some images that were added, by product, in that order."""
        shards = sorted({index // self.manifest.shard_size for index in indices})
        if any(shard not in self._unfinished for shard in shards):
            self._wait()
        found, wanted = {}, pa.array(indices, pa.int64())
        for name in self.manifest.products:
            # Of one shard after the other what is wanted alone: it may be a few rows of each.
            rows = pa.concat_tables([self._of_shard(shard, name, wanted) for shard in shards])
            found[name] = rows.take(pc.index_in(wanted, value_set=one_array(rows["index"])))
        return found

    def _of_shard(self, shard: int, product: str, wanted: pa.Array) -> pa.Table:
        """Those of the rows wanted that a shard has, with their index."""
        if shard in self._unfinished:
            rows = pa.concat_tables([batch[product] for batch in self._unfinished[shard]])
        else:
            rows = read_parquet(self.job.part_path(shard, product))
            first = shard * self.manifest.shard_size
            index = pa.array(range(first, first + len(rows)), pa.int64())
            rows = rows.append_column("index", index)
        return rows.filter(pc.is_in(rows["index"], value_set=wanted))

    def _wait(self) -> None:
        if self._commit:
            self._commit.result()

    def _write(self, shard: int, batches: list[dict[str, pa.Table]]) -> None:
        started = time.perf_counter()
        writers = {
            name: partial(
                PRODUCTS[name].write_part, pa.concat_tables([batch[name] for batch in batches])
            )
            for name in self.manifest.products
        }
        reused = self._reused.pop(shard, 0)
        self.job.commit(self.manifest, shard, self.run_id, writers, self.made_by, reused)
        self.write_s += time.perf_counter() - started
