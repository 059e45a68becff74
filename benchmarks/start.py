"""Where the first and the last seconds of a small run go.

    python -m benchmarks.start --rounds 5

Whole processes, the embedded model (or --model), photos of about 110 KB made here. Printed in
seconds, medians and all rounds: `no_change`, a run over 1,000 photos in which nothing changed;
`first_batch`, from the start of the command to the first batch that is labelled, in a run of 100
photos; `small_run`, all of that run. `cpu_s` are the processor seconds of each, with its workers:
they tell what a busy machine hides. `steps` are those of one small run. The first run of all, which
fills the user's caches, is not counted. The last line is JSON.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.photos import unlike_others

_DIFFERENT = 20  # photos; the others are copies of them

# What a command does, with the time of each step; it changes nothing of the order of things. The
# clock is that of the process that started it.
_CHILD = """
import atexit, json, os, sys, time
began = float(sys.argv.pop(1))
steps = {}
def after(step):
    steps.setdefault(step, round(time.time() - began, 3))
def timed(step, function):
    def call(*words, **options):
        result = function(*words, **options)
        after(step)
        return result
    return call
@atexit.register
def say():
    after("end")
    print("steps", json.dumps(steps), file=sys.stderr)
after("python")
from pipeline.cli.__main__ import start
after("command")
import pipeline.run as run
after("modules")
run.plan_job = timed("plan and model", run.plan_job)
run.label_job = timed("labels", run.label_job)
run.audit = timed("audit", run.audit)
run.merge = timed("merge", run.merge)
import pipeline.label.shard_writer as writer
writer.ShardWriter.add = timed("first batch", writer.ShardWriter.add)
start()
"""


def make_photos(folder: Path, n: int) -> Path:
    """Make JPEGs of about 110 KB, of 640 x 480 pixels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for place in range(n):
        path = folder / f"{place:04}.jpg"
        if place >= _DIFFERENT:
            data = (folder / f"{place % _DIFFERENT:04}.jpg").read_bytes()
            path.write_bytes(unlike_others(data, place))
            continue
        coarse = generator.integers(0, 256, (60, 80, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 11, (480, 640, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=85)
    return folder


def run(*words: str, environment: dict[str, str]) -> tuple[float, float, dict[str, float]]:
    """Run the command; return its seconds, its processor seconds, and when each step was done."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, str(began), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.time() - began
    if ran.returncode:
        sys.exit(ran.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    steps = next(line for line in ran.stderr.splitlines() if line.startswith("steps "))
    return seconds, cpu, json.loads(steps.removeprefix("steps "))


def measure(model: str, rounds: int, work: Path) -> dict[str, object]:
    many, few = make_photos(work / "many", 1000), make_photos(work / "few", 100)
    environment = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}
    time.sleep(3)  # what was changed this lately is not vouched for
    quiet = (str(many), "--out", str(work / "many.parquet"), "--model", model)
    run(*quiet, environment=environment)
    found: dict[str, list[float]] = {"no_change": [], "first_batch": [], "small_run": []}
    cpu: dict[str, list[float]] = {"no_change": [], "small_run": []}
    steps: dict[str, float] = {}
    for place in range(rounds):
        seconds, used, _ = run(*quiet, environment=environment)
        found["no_change"].append(seconds)
        cpu["no_change"].append(used)
        out = str(work / f"few-{place}.parquet")
        seconds, used, steps = run(
            str(few), "--out", out, "--model", model, environment=environment
        )
        found["small_run"].append(seconds)
        found["first_batch"].append(steps["first batch"])
        cpu["small_run"].append(used)
    return {
        **{f"{name}_s": round(statistics.median(all_), 3) for name, all_ in found.items()},
        "cpu_s": {name: round(statistics.median(all_), 3) for name, all_ in cpu.items()},
        "rounds": {name: [round(each, 3) for each in all_] for name, all_ in found.items()},
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(asked.model, asked.rounds, Path(work))
    for name, value in found.items():
        print(f"{name:14} {value}")
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pyarrow")},
    }
    print(json.dumps({"benchmark": "start", "model": asked.model, **found, **machine}))


if __name__ == "__main__":
    main()
