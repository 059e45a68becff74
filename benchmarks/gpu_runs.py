"""Decoding alone, and whole runs with their memory over time, for benchmarks.gpu.

    python -m benchmarks.gpu_runs SETTINGS    one whole run, with settings as JSON, and its record

A whole run goes by the library: the command needs a package more, which a lent machine may not
have.
"""

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from pipeline.console import Console
from pipeline.find.scan import scan
from pipeline.label import local
from pipeline.label.predict import Predictor
from pipeline.library import label_images
from pipeline.load.batch import Batch
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.settings import DEFAULT_IMAGE_TIMEOUT_S, DEFAULT_MAX_PIXELS, Settings
from vit.preprocess import Preprocess

_LOOK_EVERY_S = 0.5
_T = TypeVar("_T")
_WARM_UP = 0.1  # of a run's images: the device's first batches compile and take memory


def measure_decoding(
    photos: Path,
    at_most: int,
    preprocess: Preprocess,
    workers: int,
    batch_size: int,
    pin_memory: bool,
) -> dict[str, float]:
    """Images/s that the workers deliver when nobody keeps them waiting, from their first batch on."""
    listing = scan([photos]).listing.slice(0, at_most)
    n = len(listing)
    dataset = BatchDataset(listing, n, preprocess, DEFAULT_MAX_PIXELS)
    sampler = ShardBatchSampler(n, n, [0], batch_size)
    batches = load_batches(
        dataset, sampler, workers, Console(), DEFAULT_IMAGE_TIMEOUT_S, pin_memory=pin_memory
    )
    began, done, core_s = 0.0, 0, 0.0
    for number, batch in enumerate(batches):
        if number == 0:
            began = time.perf_counter()
            continue
        done += len(batch)
        core_s += batch.decode_s + batch.read_s
    seconds = time.perf_counter() - began
    return {
        "images": n,
        "workers": workers,
        "images_per_s": round(done / seconds, 1),
        "core_ms_per_image": round(core_s / max(done, 1) * 1000, 3),
    }


def run_whole(settings: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """Run label-images over photos in a process of its own and watch its memory."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_runs", json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    series: list[dict[str, float]] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            seconds = round(time.perf_counter() - began, 1)
            series.append({"s": seconds, **_memory(process.pid, on_gpu)})
            is_over.wait(_LOOK_EVERY_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, problems = process.communicate()
    is_over.set()
    watcher.join()
    if process.returncode:
        return {"failed": problems[-1000:]}
    done = json.loads(out.splitlines()[-1])
    wall_s = time.perf_counter() - began
    return {
        **done,
        "wall_s": round(wall_s, 2),
        "start_s": round(wall_s - done["seconds"], 2),  # and its end
        "images_per_s": round(done["images"] / done["seconds"], 1),
        "memory": series,
        "memory_growth": growth(
            [entry["main_mb"] for entry in series if entry["workers_mb"] and entry["main_mb"]]
        ),
    }


def whole_run(settings: Settings) -> dict[str, Any]:
    """Label as `settings` say, in this process; also say how fast it went once it was under way."""
    times, images = [], []
    really_predict = local.predict_batches

    def predict_batches(predictor: Predictor, batches: Iterable[Batch]) -> Iterator[Any]:
        for batch, predictions in really_predict(predictor, batches):
            times.append(time.perf_counter())
            images.append(len(batch))
            yield batch, predictions

    with mock.patch.object(local, "predict_batches", predict_batches):
        outcome = label_images(settings)
    done = list(itertools.accumulate(images))
    first = next(n for n, sofar in enumerate(done) if sofar >= _WARM_UP * done[-1])
    seconds = times[-1] - times[first]
    return {
        "images": outcome.images,
        "seconds": round(outcome.seconds, 2),
        "images_per_s_under_way": round((done[-1] - done[first]) / seconds, 1) if seconds else None,
        "waited": round(outcome.waited, 3),
        "rates": outcome.rates,
        "stages": outcome.stages,
    }


def growth(megabytes: list[float]) -> float | None:
    """The largest of the last third over the largest of the middle third, less one; None where
    there is too little to tell.
    """
    third = len(megabytes) // 3
    if third < 2:
        return None
    middle, last = max(megabytes[third : 2 * third]), max(megabytes[2 * third :])
    return round(last / middle - 1, 3)


def _memory(pid: int, on_gpu: bool) -> dict[str, float]:
    """Megabytes of the main process, of its workers (what they share counted once), of the GPU."""
    children = f"/proc/{pid}/task/{pid}/children"
    workers = (_pss_mb(int(child)) for child in _read(children, str.split, list[str]()))
    found = {"main_mb": _pss_mb(pid), "workers_mb": round(sum(workers), 1)}
    return found | ({"gpu_mb": _gpu_mb()} if on_gpu else {})


def _pss_mb(pid: int) -> float:
    def parse(text: str) -> float:
        line = next(line for line in text.splitlines() if line.startswith("Pss:"))
        return round(int(line.split()[1]) / 1024, 1)

    return _read(f"/proc/{pid}/smaps_rollup", parse, 0.0)


def _read(path: str, parse: Callable[[str], _T], otherwise: _T) -> _T:
    """What a file of /proc says; `otherwise` where its process is gone, or on another system."""
    try:
        return parse(Path(path).read_text())
    except (OSError, StopIteration):
        return otherwise


def describe_gpu() -> dict[str, Any]:
    """The first GPU's name and memory. Asked of the driver: torch would take memory there first."""
    name, memory_mb = _ask_driver("name"), _ask_driver("memory.total")
    return {"name": name or "a GPU without nvidia-smi", "memory_mb": int(memory_mb or 0)}


def _gpu_mb() -> float:
    return float(_ask_driver("memory.used") or 0)


def _ask_driver(what: str) -> str:
    """A value of the first GPU; empty where nvidia-smi is not there or does not know it."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    ran = subprocess.run(query, capture_output=True, text=True, check=False)
    return ran.stdout.strip().splitlines()[0].strip() if not ran.returncode else ""


if __name__ == "__main__":
    print(json.dumps(whole_run(Settings(**json.loads(sys.argv[1])))))
