"""`make soak`: what takes too long for every day.

A hundred real kills, ten thousand damaged files.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline.failures import ERROR_CODES
from tests.helpers import ROOT, Command, make_photos, rows
from tests.mutations import make_mutated
from tests.test_crash import assert_no_process_left, start

KILLS = int(os.environ.get("SOAK_KILLS", "100"))
FILES = int(os.environ.get("SOAK_FILES", "10000"))

pytestmark = pytest.mark.soak


def test_a_hundred_kills_and_the_table_of_an_undisturbed_run(
    tmp_path: Path, small_model: Path, process: Command
) -> None:
    photos = make_photos(tmp_path / "photos", 600)
    (photos / "broken.jpg").write_bytes(b"no photo")
    whole, options = (
        tmp_path / "whole.parquet",
        ["--model", small_model, "--shard-size", 16, "--batch-size", 4],
    )
    options += ["--workers", 2]
    started = time.monotonic()
    features = tmp_path / "features"
    assert process(photos, "--out", whole, "--embeddings", features, *options).returncode == 0
    duration = time.monotonic() - started
    expected, expected_features = rows(whole), pq.read_table(features)
    generator = random.Random(2026)
    killed = table = 0
    while killed < KILLS:
        table += 1
        out = tmp_path / "kills" / f"{table}.parquet"
        out.parent.mkdir(exist_ok=True)
        features = out.with_suffix("")  # a folder called as the table's number
        arguments = (photos, "--out", out, "--embeddings", features, *options)
        for _ in range(generator.choice([1, 2, 3])):
            with start(*arguments) as running:
                wait_for_a_random_moment(running, Job(out), generator, duration)
                landed = running.poll() is None
                if landed:
                    generator.choice([os.kill, os.kill, os.killpg])(running.pid, signal.SIGKILL)
                running.wait()
            assert_no_process_left(running.pid, out)
            killed += landed
        ran = process(*arguments)
        assert ran.returncode == 0, ran.stderr
        assert rows(out) == expected, f"table {table}"
        assert pq.read_table(features).equals(expected_features), f"embeddings of table {table}"
        assert process("verify", out).returncode == 0
        assert process("verify", features).returncode == 0
        left = sorted(str(path.relative_to(out.parent)) for path in out.parent.rglob("*"))
        job = f".{out.name}.job"
        beside = f".{features.name}.job"
        always = [job, f"{job}/history.json", f"{job}/lock", f"{job}/manifest.json", out.name]
        always += [beside, f"{beside}/lock", f"{beside}/table.json"]
        always += [features.name, f"{features.name}/part-00000.parquet"]
        run = f"{job}/run.json"  # not there, where the kill came between the table and it
        assert left in (sorted(always), sorted([*always, run]))
        for path in sorted(out.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        print(f"{killed} of {KILLS} kills, {table} tables the same", flush=True)


def wait_for_a_random_moment(
    running: "subprocess.Popen[str]", job: Job, generator: random.Random, duration: float
) -> None:
    """Wait for some time, or else for some number of receipts and a little longer."""
    if generator.random() < 0.25:
        time.sleep(generator.uniform(0.2, 0.9) * duration)
        return
    receipts = job.folder / "receipts"
    wanted = generator.randrange(39)
    while (
        running.poll() is None
        and (len(list(receipts.iterdir())) if receipts.is_dir() else 0) < wanted
    ):
        time.sleep(0.002)
    time.sleep(generator.choice([0, 0.01, 0.1]) * generator.random())


class Memory(threading.Thread):
    """The memory of a process and its children: proportional set sizes (what is shared counts
    once), in bytes.
    """

    def __init__(self, pid: int, job: Job) -> None:
        super().__init__(daemon=True)
        self.pid, self.job = pid, job
        self.readings: list[tuple[int, int]] = []  # shards done, bytes

    def run(self) -> None:
        while Path(f"/proc/{self.pid}").exists():
            receipts = self.job.folder / "receipts"
            done = len(list(receipts.glob("*.json"))) if receipts.is_dir() else 0
            if done:
                self.readings.append((done, sum(map(_pss, [self.pid, *_children(self.pid)]))))
            time.sleep(0.1)

    def peak(self, until: int) -> int:
        return max(size for done, size in self.readings if done <= until)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def test_ten_thousand_mutated_files_and_flat_memory(
    tmp_path: Path, small_model: Path, process: Command
) -> None:
    photos, out = make_mutated(tmp_path / "p", FILES), tmp_path / "l.parquet"
    shard = max(FILES // 80, 1)
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--workers",
        2,
    ]
    command += [
        "--max-errors",
        "100%",
        "--shard-size",
        shard,
        "--max-pixels",
        4_000_000,
        "--image-timeout",
        20,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        memory = Memory(running.pid, Job(out))
        memory.start()
        _, said = running.communicate(timeout=1800)
    assert running.returncode == 0, said
    assert "Traceback" not in said
    table = rows(out)
    assert len(table) == FILES
    codes: dict[str, int] = {}
    for row in table:
        codes[row["error_code"] or "ok"] = codes.get(row["error_code"] or "ok", 0) + 1
    assert codes.keys() <= {"ok", *ERROR_CODES}
    early, late = memory.peak(until=8), memory.peak(until=80)
    print(f"{FILES} files: {codes}")
    print(f"peak memory: {early >> 20} MB until file {8 * shard}, {late >> 20} MB until the last")
    assert late < early * 1.1
    assert process("verify", out).returncode == 0
