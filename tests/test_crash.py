"""A crash at any point, then the same command: the table of an uninterrupted run.

The matrix ends a process at each change it makes to the disk, in turn; the kills are real SIGKILLs
at random moments.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from tests.helpers import ROOT, Command, make_photos, photo, rows


class Crash(BaseException):
    """Stands for the end of the process: nothing after it may run that would not run after a
    SIGKILL.
    """


class Disk:
    """Counts every change to the disk and crashes before or after a chosen one."""

    NAMES = ("replace", "fsync", "unlink", "mkdir", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, crash_at: int | None, after: bool) -> None:
        self.changes: list[str] = []
        self.crashed = False
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.watched(name, getattr(os, name), crash_at, after))

    def sample(self) -> set[int]:
        """Changes to crash at, before each and after each, that show every state of the files once.

        What a wait for the disk leaves is what the change before it leaves, and a crash after a
        change leaves what one before the next would, but for what is being written to: so of the
        other changes every second one, and the first and the last.
        """
        last = len(self.changes) - 1
        lasting = [n for n in range(last + 1) if not self.changes[n].startswith("fsync")]
        return {0, last, *lasting[::2]}

    def watched(
        self, name: str, real: Callable[..., Any], crash_at: int | None, after: bool
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.crashed:
                raise Crash  # a dead process changes nothing more
            self.changes.append(f"{name} {arguments[0]}")
            due = len(self.changes) - 1 == crash_at
            if due and not after:
                self.crashed = True
                raise Crash
            try:
                return real(*arguments, **options)
            finally:
                if due:
                    self.crashed = True
                    raise Crash

        return call


# A run changes the disk some eighty times: CI has a sample, `make soak` all of them.
SAMPLED = pytest.mark.parametrize(
    "is_whole",
    [pytest.param(False, id="sample"), pytest.param(True, id="all", marks=pytest.mark.soak)],
)


def settings_for(folder: Path, model: Path) -> Settings:
    return Settings(
        paths=(folder / "photos",),
        out=folder / "labels.parquet",
        model=str(model),
        workers=0,
        shard_size=4,
    )


def night_two(folder: Path, model: Path) -> None:
    """A folder with a table, in which photos were then added, changed and deleted."""
    make_photos(folder / "photos", 10)
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    run(settings_for(folder, model), Console())
    for seed in range(4):
        photo(50 + seed).save(folder / "photos" / f"new{seed}.jpg")
    photo(60).save(folder / "photos" / "0003.jpg")
    (folder / "photos" / "0005.jpg").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@SAMPLED
@pytest.mark.parametrize("night", [1, 2])
def test_a_crash_at_each_change_to_the_disk(
    tmp_path: Path,
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    night: int,
    after: bool,
    is_whole: bool,
) -> None:
    """CI crashes where sample() says, so that it sees every state once; the soak everywhere."""
    # The model's kept identity is the user's and not the job's; the first run alone would write it.
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    start, whole = tmp_path / "start", tmp_path / "whole"
    if night == 1:
        make_photos(start / "photos", 10)
    else:
        night_two(start, small_model)
    shutil.copytree(
        start, whole, symlinks=True
    )  # copytree keeps the times, so nothing looks changed
    with monkeypatch.context() as patch:
        disk = Disk(patch, None, after)
        run(settings_for(whole, small_model), Console())
    expected = _without_roots(whole)
    before_table = _without_roots(start) if night == 2 else None
    points = len(disk.changes)
    # Below there is no audit: it changes nothing on disk, and all rows are compared with those of
    # the run above, which it let pass.
    assert points > 25
    assert sum(change.startswith("replace") for change in disk.changes) > 7

    for point in range(points) if is_whole else sorted(disk.sample()):
        here = tmp_path / f"{point}"
        shutil.copytree(start, here, symlinks=True)
        with monkeypatch.context() as patch:
            Disk(patch, point, after)
            with pytest.raises(Crash):
                run(replace(settings_for(here, small_model), audit=0), Console())
        if (here / "labels.parquet").exists():
            assert _without_roots(here) in (before_table, expected), (
                "readers see the old table or the new one"
            )
        run(replace(settings_for(here, small_model), audit=0), Console())
        what = f"crash {'after' if after else 'before'} {disk.changes[point]}"
        assert _without_roots(here) == expected, what
        left = sorted(path.name for path in (here / ".labels.parquet.job").iterdir())
        # Where the crash came between the table and run.json the next run had nothing to do.
        assert left in (
            ["history.json", "lock", "manifest.json"], ["history.json", "lock", "manifest.json", "run.json"]
        ), what  # fmt: skip
        assert sorted(path.name for path in here.iterdir()) == [
            ".labels.parquet.job",
            "labels.parquet",
            "photos",
        ], what
        shutil.rmtree(here)


def _without_roots(folder: Path) -> list[dict[str, Any]]:
    """The rows of a table, but for the columns that tell when and where it was made."""
    return rows(folder / "labels.parquet", without=("run_id", "labelled_at", "root"))


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path, small_model: Path, process: Command) -> None:
    """Two; a hundred in test_soak.py."""
    photos = make_photos(tmp_path / "photos", 200)
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    options = ["--model", small_model, "--shard-size", 8, "--batch-size", 4, "--workers", 2]
    started = time.monotonic()
    with start(photos, "--out", whole, *options) as running:  # as those that are killed
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    duration = time.monotonic() - started
    generator = random.Random(2026)
    for _ in range(2):
        with start(photos, "--out", killed, *options) as running:
            time.sleep(generator.uniform(0.5, 0.95) * duration)
            running.kill()
            running.wait()
        assert_no_process_left(running.pid, killed)
    ran = process(photos, "--out", killed, *options)
    assert ran.returncode == 0, ran.stderr
    assert rows(killed) == rows(whole)
    assert process("verify", killed).returncode == 0
    assert sorted(path.name for path in (tmp_path / ".killed.parquet.job").iterdir()) == [
        "history.json",
        "lock",
        "manifest.json",
        "run.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C reaches the workers too
        (os.kill, signal.SIGTERM, 143),
        pytest.param(os.killpg, signal.SIGTERM, 143, marks=pytest.mark.soak),
    ],
)
def test_a_signal_ends_the_run_soon_and_it_goes_on_later(
    tmp_path: Path,
    small_model: Path,
    process: Command,
    send: Callable[[int, int], None],
    number: signal.Signals,
    code: int,
) -> None:
    photos = make_photos(tmp_path / "photos", 200)
    out = tmp_path / "labels.parquet"
    arguments = [
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--shard-size",
        8,
        "--batch-size",
        2,
        "--workers",
        2,
    ]
    first_receipt = tmp_path / ".labels.parquet.job" / "receipts" / "00001.json"
    with start(*arguments) as running:
        deadline = time.monotonic() + 60
        while not first_receipt.exists():
            assert running.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        send(running.pid, number)
        interrupted = time.monotonic()
        _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert time.monotonic() - interrupted < 30
    assert (
        errors.splitlines()[-1]
        == "interrupted; finished shards are kept, run the same command to go on"
    )
    assert "Traceback" not in errors, errors
    assert_no_process_left(running.pid, out)
    ran = process(*arguments)
    assert re.search(r"going on: \d+ of 200 images are done already", ran.stderr)
    assert pq.read_metadata(out).num_rows == 200


@pytest.mark.slow
def test_a_second_run_on_the_same_table_leaves_at_once(
    tmp_path: Path, small_model: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos", 300)
    arguments = [
        photos,
        "--out",
        tmp_path / "t.parquet",
        "--model",
        small_model,
        "--batch-size",
        1,
        "--shard-size",
        8,
    ]
    with start(*arguments) as running:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".t.parquet.job" / "receipts").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        ran = command(*arguments)
        running.kill()
    assert ran.returncode == 4
    assert f"another run is at work on this table: process {running.pid} on " in ran.stderr


def start(*arguments: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives each command
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def assert_no_process_left(parent: int, out: Path) -> None:
    """Workers of a dead run on `out` end by themselves."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = []
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if os.fsencode(out) in stat.read_bytes() and int(stat.parent.name) != parent:
                    left.append(stat.parent.name)
            except OSError:
                continue
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"processes left: {left}")
