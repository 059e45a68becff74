"""Batches: shards, identity, failures as values."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan import make_plan
from pipeline.console import Console
from pipeline.failures import Failure
from pipeline.find.scan import scan
from pipeline.find.source import locate
from pipeline.load.batch import Batch
from pipeline.load.decode import register_formats
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.load.sample import Sample
from tests.helpers import ROOT, make_photos
from vit.preprocess import Preprocess

PREPROCESS = Preprocess(16, 16)
CONSOLE = Console()


def dataset(folder: Path, shard_size: int = 8) -> BatchDataset:
    pending = make_plan(scan([folder]).listing, None, "f", []).pending
    return BatchDataset(pending, shard_size, PREPROCESS, 10**8)


@given(
    n=st.integers(0, 400),
    shard_size=st.integers(1, 90),
    batch_size=st.integers(1, 70),
    keep=st.integers(0, 2**32),
)
def test_batches_cover_the_chosen_shards_once_and_never_cross_one(
    n: int, shard_size: int, batch_size: int, keep: int
) -> None:
    n_shards = -(-n // shard_size)
    shards = [shard for shard in range(n_shards) if keep >> (shard % 32) & 1]
    sampler = ShardBatchSampler(n, shard_size, shards, batch_size)
    batches = list(sampler)
    assert all(
        len({index // shard_size for index in batch}) == 1 and len(batch) <= batch_size
        for batch in batches
    )
    expected = [index for index in range(n) if index // shard_size in shards]
    assert [index for batch in batches for index in batch] == expected
    assert len(sampler) == len(batches)


def test_a_batch_holds_images_and_failures_each_with_its_index(tmp_path: Path) -> None:
    make_photos(tmp_path, 8)
    (tmp_path / "0002.jpg").write_bytes(b"no photo")
    (tmp_path / "0005.jpg").unlink()
    register_formats()
    batches = dataset(tmp_path)
    batch = batches[[1, 2, 3, 5]]  # 0005 is gone, so index 5 is 0006.jpg
    assert (batch.shard, batch.indices, len(batch)) == (0, [1, 3, 5], 4)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert [(failure.index, failure.code) for failure in batch.failures] == [(2, "not_an_image")]
    for row, index in enumerate(batch.indices):
        assert torch.equal(batch.images[row], batches[[index]].images[0])
    empty = batches[[2]]
    assert empty.images.shape == (0, 3, 16, 16)


def test_workers_deliver_the_same_as_the_main_process(tmp_path: Path) -> None:
    data = dataset(make_photos(tmp_path, 30))
    sampler = ShardBatchSampler(30, 8, [0, 1, 3], 3)

    def collect(workers: int) -> list[Batch]:
        return list(load_batches(data, sampler, workers, CONSOLE, 60, in_order=True))

    alone, shared = collect(0), collect(2)
    assert (
        [batch.indices for batch in shared] == [batch.indices for batch in alone] == list(sampler)
    )
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, shared, strict=True))
    assert all(batch.decode_s > 0 for batch in shared)


def test_batches_through_pipes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(make_photos(tmp_path, 9))
    sampler = ShardBatchSampler(9, 8, [0, 1], 4)
    shared = list(load_batches(data, sampler, 1, CONSOLE, 60))
    monkeypatch.setattr("pipeline.load.crew._free_shared_memory", lambda: 1000)
    piped = list(load_batches(data, sampler, 1, CONSOLE, 60))
    for a, b in zip(shared, piped, strict=True):
        assert (a.indices, a.facts) == (b.indices, b.facts)
        assert torch.equal(a.images, b.images)
        assert (a.images.is_shared(), b.images.is_shared()) == (True, False)


class LostOnItsWay(BatchDataset):
    """A worker that is done with a batch which then cannot be sent, as when /dev/shm fills up
    meanwhile.
    """

    def make_batch(self, indices: list[int], begin: Callable[[], None]) -> Batch:
        batch = super().make_batch(indices, begin)
        if indices[0] == 4:
            return replace(batch, facts=[lambda: None])  # type: ignore[list-item]
        return batch


def test_a_batch_that_never_arrives_does_not_hang_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("pipeline.load.crew._LOST_AFTER_S", 1.5)
    pending = make_plan(scan([make_photos(tmp_path, 12)]).listing, None, "f", []).pending
    sampler = ShardBatchSampler(12, 12, [0], 4)
    batches = list(
        load_batches(LostOnItsWay(pending, 12, PREPROCESS, 10**8), sampler, 2, CONSOLE, 60)
    )
    assert sorted(batch.indices for batch in batches) == list(sampler)
    assert "a batch never arrived" in "\n".join(said)


ORPHANS = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from pipeline.console import Console
from pipeline.load import crew, loader
from tests.test_pipeline_loader import ShardBatchSampler, dataset

begin = crew._begin

def begin_late(worker_id):
    time.sleep(1)  # by then it is an orphan
    begin(worker_id)

crew._begin = begin_late
coming = loader.load_batches(
    dataset(Path(sys.argv[1])), ShardBatchSampler(8, 8, [0], 4), 2, Console(), 60
)
pids = [process.pid for process in multiprocessing.active_children()]
Path(sys.argv[2]).write_text(" ".join(map(str, pids)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_alive(command_line: Path) -> bool:
    try:
        return bool(command_line.read_bytes())  # of one that nobody waited for it is empty
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_workers_end_though_their_run_died_before_they_began(tmp_path: Path) -> None:
    photos, pids = make_photos(tmp_path / "photos", 8), tmp_path / "pids"
    ran = subprocess.run([sys.executable, "-c", ORPHANS, photos, pids], cwd=ROOT, check=False)
    assert ran.returncode == -signal.SIGKILL
    workers = [Path("/proc", pid, "cmdline") for pid in pids.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "torch's own watchdog takes them for children of init"
        time.sleep(0.1)


class SlowAtFirst(BatchDataset):
    """The worker that has the first batch keeps it until it is let go."""

    def __init__(self, *arguments: Any, let_go: Path) -> None:
        super().__init__(*arguments)
        self.let_go = let_go

    def make_batch(self, indices: list[int], begin: Callable[[], None]) -> Batch:
        while indices[0] == 0 and not self.let_go.exists():
            time.sleep(0.01)
        return super().make_batch(indices, begin)


def test_a_slow_batch_holds_no_other_up(tmp_path: Path) -> None:
    pending = make_plan(scan([make_photos(tmp_path / "photos", 16)]).listing, None, "f", []).pending
    sampler = ShardBatchSampler(16, 8, [0, 1], 4)
    data = SlowAtFirst(pending, 8, PREPROCESS, 10**8, let_go=tmp_path / "let_go")
    coming = load_batches(data, sampler, 2, CONSOLE, 60)
    batches = [next(coming)]
    assert batches[0].indices == [4, 5, 6, 7]
    data.let_go.touch()
    batches += coming
    assert sorted(batch.indices for batch in batches) == list(sampler)
    assert all(batch.shard == batch.indices[0] // 8 for batch in batches)


class Slow(BatchDataset):
    """Each image takes longer than the main process waits before it looks at its workers."""

    def load(self, *arguments: Any, **named: Any) -> Sample | Failure:
        time.sleep(0.25)
        return super().load(*arguments, **named)


def test_to_wait_for_slow_workers_is_to_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Waiting and losing a worker are the same error of torch's; which it was the workers show."""
    monkeypatch.setattr("pipeline.load.crew._LOOK_EVERY_S", 0.1)
    pending = make_plan(scan([make_photos(tmp_path, 8)]).listing, None, "f", []).pending
    sampler = ShardBatchSampler(8, 8, [0], 4)
    data = Slow(pending, 8, PREPROCESS, 10**8)
    batches = list(load_batches(data, sampler, 2, CONSOLE, 60))
    assert sorted(batch.indices for batch in batches) == list(sampler)
    assert not said


@pytest.mark.slow
def test_the_server_that_forks_workers_has_imported_what_they_need() -> None:
    """A name that it cannot import it passes over without a word, and each worker takes seconds."""
    script = (
        "import jobs.storage.connections as connections\n"
        "from pipeline.load import processes\n"
        "connections._file_systems['s3://b'] = None, 'b'\n"
        "context = processes.worker_context()\n"
        "assert context.get_start_method() == 'forkserver'\n"
        # A child that imports nothing itself: what it has it was forked with.
        "receiver, sender = context.Pipe(duplex=False)\n"
        "look = 'import sys; sender.send([name for name in names if name not in sys.modules])'\n"
        "names = [*processes.PRELOAD, 'pipeline.load.crew', 'pipeline.load.isolation']\n"
        "known = {'sender': sender, 'names': names}\n"
        "child = context.Process(target=exec, args=(look, known))\n"
        "child.start(); missing = receiver.recv(); child.join()\n"
        "assert not missing, missing\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_file_is_found_by_its_bytes() -> None:
    assert locate("/r\\xff", "a\\xe9") == b"/r\xff/a\xe9"
    assert locate("/r", "ü/b") == "/r/ü/b".encode()
    assert locate("/", "a") == b"/a"
