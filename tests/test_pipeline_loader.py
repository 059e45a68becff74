"""Batches: shards, identity, failures as values."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan import make_plan
from pipeline.console import Console
from pipeline.find.scan import scan
from pipeline.find.source import locate
from pipeline.load.batch import Batch
from pipeline.load.decode import register_formats
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from tests.helpers import make_photos
from vit.preprocess import Preprocess

PREPROCESS = Preprocess(16, 16)
CONSOLE = Console(quiet=True)


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
    assert not data.by_pipe
    monkeypatch.setattr("pipeline.load.loader._free_shared_memory", lambda: 1000)
    piped = list(load_batches(data, sampler, 1, CONSOLE, 60))
    assert all(batch.by_pipe for batch in piped)
    for a, b in zip(shared, piped, strict=True):
        assert (a.indices, a.facts) == (b.indices, b.facts)
        assert torch.equal(a.images, b.images)
        assert not b.images.is_shared()


class LostOnItsWay(BatchDataset):
    """A worker that is done with a batch which then cannot be sent, as when /dev/shm fills up
    meanwhile.
    """

    def __getitem__(self, indices: list[int]) -> Batch:
        batch = super().__getitem__(indices)
        if indices[0] == 4 and not self.by_pipe:
            return replace(batch, facts=[lambda: None])  # type: ignore[list-item]
        return batch


def test_a_batch_that_never_arrives_does_not_hang_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.load.loader._LOST_AFTER_S", 1.5)
    pending = make_plan(scan([make_photos(tmp_path, 12)]).listing, None, "f", []).pending
    sampler = ShardBatchSampler(12, 12, [0], 4)
    batches = list(
        load_batches(LostOnItsWay(pending, 12, PREPROCESS, 10**8), sampler, 2, CONSOLE, 60)
    )
    assert sorted(batch.indices for batch in batches) == list(sampler)
    assert "a batch never arrived" in capfd.readouterr().err


class SlowAtFirst(BatchDataset):
    """The worker that has the first batch keeps it until it is let go."""

    def __init__(self, *arguments: Any, let_go: Path) -> None:
        super().__init__(*arguments)
        self.let_go = let_go

    def __getitem__(self, indices: list[int]) -> Batch:
        while indices[0] == 0 and not self.let_go.exists():
            time.sleep(0.01)
        return super().__getitem__(indices)


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


def test_the_file_is_found_by_its_bytes() -> None:
    assert locate("/r\\xff", "a\\xe9") == b"/r\xff/a\xe9"
    assert locate("/r", "ü/b") == "/r/ü/b".encode()
    assert locate("/", "a") == b"/a"
