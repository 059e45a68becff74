"""What do very many files cost, apart from decoding and the model?

    python -m benchmarks.scale --files 100000 1000000

Makes a tree of links to a photo, then measures, each as a process of its own with its time and peak
memory: `plan` of the new tree, the merge of a finished job, `plan` again, and a run in which
nothing changed. The job in between is labelled without a model: made-up predictions go through the
real rows, parts, receipts and merge. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image

from benchmarks.measure import measure
from jobs.job import Job
from jobs.manifest import Manifest
from pipeline.console import Console
from pipeline.failures import ImageFacts
from pipeline.finish.merging import merge
from pipeline.label.labeller import Run
from pipeline.label.local import Machine
from pipeline.label.predictions import Predictions
from pipeline.label.rows import Rows
from pipeline.load.batch import Batch
from pipeline.plan.choice import choose
from pipeline.plan.planned import plan_job
from pipeline.settings import Settings
from pipeline.table.record import PRODUCTS

_LINKS_EACH = 30_000  # ext4 allows 65,000 names for one file
_FILES_EACH = 1_000  # in a folder


def make_tree(folder: Path, n: int) -> Path:
    """Make `n` JPEG files, links to a few, a thousand in a folder."""
    folder.mkdir()
    for place in range(n):
        if place % _LINKS_EACH == 0:
            photo = folder.parent / f"{folder.name}-{place}.jpg"
            Image.new("RGB", (64, 64), "orange").save(photo)
        if place % _FILES_EACH == 0:
            below = folder / f"{place // _FILES_EACH:05}"
            below.mkdir()
        os.link(photo, below / f"photo-{place:08}.jpg")
    return folder


def label_without_model(settings: Settings) -> None:
    """Do a job but for reading, decoding and predicting; embeddings, if any, are made up, too."""
    console = Console()
    machine = Machine(settings)
    job = Job(settings.table)
    beside = {name: Job(place) for name, place in settings.beside.items()}
    with ExitStack() as held:
        for each in (job, *beside.values()):
            held.enter_context(each.held())
        planned = plan_job(job, choose(job, settings, None), None, machine, console)
        manifest = planned.manifest
        assert manifest is not None
        rows = Rows(job.pending(), machine.identity, "made-up")
        for shard in planned.shards:
            n_features = machine.classifier.head.n_features if settings.beside else 0
            tables = rows.make(*_made_up(manifest, shard, n_features), datetime.now(UTC))
            writers = {name: partial(PRODUCTS[name].write_part, tables[name]) for name in tables}
            job.commit(manifest, shard, "made-up", writers)
        run = Run(job, manifest, machine.identity, settings, console, "made-up", beside=beside)
        merge(run, machine, job.receipts(manifest).values())
        job.finish(manifest.plan_id)


def _made_up(manifest: Manifest, shard: int, n_features: int = 0) -> tuple[Batch, Predictions]:
    n, first = manifest.shard_rows(shard), shard * manifest.shard_size
    hashes = [xxhash.xxh3_128_hexdigest(f"{first + row}".encode()) for row in range(n)]
    facts = [ImageFacts(64, 64, "JPEG", content_hash=digits) for digits in hashes]
    batch = Batch(shard, list(range(first, first + n)), torch.empty(n, 0), facts, [], 0.0, 0.0)
    class_ids = np.tile(np.arange(5, dtype=np.int32), (n, 1))
    probabilities = np.tile(np.array([0.5, 0.2, 0.1, 0.1, 0.1], dtype=np.float32), (n, 1))
    generator = np.random.default_rng(shard)
    features = generator.standard_normal((n, n_features), np.float32) if n_features else None
    return batch, Predictions(class_ids, probabilities, np.ones(n, dtype=np.bool_), features)


def measure_tree(n: int, work: Path) -> dict[str, Any]:
    photos, out = make_tree(work / f"tree-{n}", n), work / f"labels-{n}.parquet"
    ours = [sys.executable, "-m", "pipeline.cli"]
    results = {"plan, all new": measure([*ours, "plan", str(photos), "--out", str(out)])}
    # In a process of its own, so that its memory is not this one's.
    job = get_context("spawn").Process(
        target=label_without_model, args=(Settings(paths=(photos,), out=out),)
    )
    started = time.perf_counter()
    job.start()
    assert job.pid
    _, status, usage = os.wait4(job.pid, 0)
    assert status == 0
    results["job without model"] = {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
    }
    results["plan, nothing new"] = measure([*ours, "plan", str(photos), "--out", str(out)])
    results["run, nothing new"] = measure([*ours, str(photos), "--out", str(out), "--quiet"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for n in arguments.files:
            results[n] = measure_tree(n, Path(work))
            for what, cost in results[n].items():
                print(
                    f"{n:>10,} files  {what:<18} {cost['seconds']:8.1f} s {cost['peak_mb']:8,} MB"
                )
    print(json.dumps({"benchmark": "scale", "results": results}))


if __name__ == "__main__":
    main()
