"""Rows -> committed shards, off the main thread: the model need not wait for the disk."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import pyarrow as pa

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.receipts import Provenance
from pipeline.errors import TimeIsUp
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

    def add(self, shard: int, rows: dict[str, pa.Table]) -> None:
        """Take some rows of a shard, by product. Raises what a commit before this one ran into."""
        batches = self._unfinished.setdefault(shard, [])
        batches.append(rows)
        n_rows = sum(len(next(iter(batch.values()))) for batch in batches)
        if n_rows == self.manifest.shard_rows(shard):
            self._wait()
            self.n_rows += self.manifest.shard_rows(shard)
            self._commit = self._thread.submit(self._write, shard, self._unfinished.pop(shard))

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
        self.job.commit(self.manifest, shard, self.run_id, writers, self.made_by)
        self.write_s += time.perf_counter() - started
