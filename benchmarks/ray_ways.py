"""Why tasks? Three ways to label one job on Ray, on the same nodes, with the same decoding and
model.

    python -m benchmarks.ray_ways PHOTOS --images 1000 --rounds 3

tasks    what --engine ray does: shards are tasks, each read, decoded, predicted and committed in one place
actors   shards are handed to actors, one a node, that hold the model; Ray restarts them and repeats their calls
data     Ray Data: indices -> map_batches(decode) as tasks -> map_batches(predict) in an actor a core -> rows to the
         driver, which commits them. Decoding and predicting are placed apart; pixels travel as
         Ray's objects

Each labels on one node of two cores, on two of one core each, and on two of which one is killed a
while after the start. All plan, commit and merge with this project's own code, and leave the same
table. Seconds are of whole processes; the clusters run already. Needs label-images[test]. The last
line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.beyond import ARCH, cluster
from benchmarks.models import make_models
from benchmarks.photos import make_photos
from jobs.receipts import Provenance
from pipeline.cli.commands import main as label_images
from pipeline.console import Console
from pipeline.label.labeller import Labelled, Run
from pipeline.label.local import load_model
from pipeline.label.placement import choose_placement
from pipeline.label.predict import Predictor
from pipeline.label.predictions import Predictions
from pipeline.label.ray_driver import Cluster, _label, _share
from pipeline.label.rows import Rows
from pipeline.label.shard_writer import ShardWriter
from pipeline.label.stages import Stages
from pipeline.load.batch import Batch
from pipeline.load.decode import register_formats
from pipeline.load.image_dataset import BatchDataset
from pipeline.outcome import library_versions

WAYS = ("tasks", "actors", "data")
CLUSTERS = ("one node", "two nodes", "one is killed")
_LIMIT_S = 120
_KILLED_AFTER_S = 15


def by_actors(self: Cluster, run: Run, shards: Sequence[int]) -> Labelled:
    """In place of ray_driver.py's own way: an actor a share of the cluster, the next shard for
    whichever is free.
    """
    ray = self.ray
    share = _share(ray.nodes())
    options = {"num_cpus": share.cpus, "max_restarts": -1, "max_task_retries": -1}
    idle = [ray.remote(**options)(Labeller).remote() for _ in range(share.n)]
    waiting, working = list(shards), dict[Any, Any]()
    while waiting or working:
        while waiting and idle:
            actor = idle.pop()
            given = [waiting.pop(0)]
            working[
                actor.label.remote(
                    self.folder, run.job.out, run.settings, given, share.cpus, run.id
                )
            ] = actor
        for reference in ray.wait(list(working))[0]:
            placement = ray.get(reference).placement
            idle.append(working.pop(reference))
    return Labelled(Stages(), placement)


class Labeller:
    """An actor; its process keeps the model after the first call."""

    def label(self, *arguments: Any) -> Labelled:
        return _label(*arguments)


def by_ray_data(self: Cluster, run: Run, shards: Sequence[int]) -> Labelled:
    """In place of ray_driver.py's own way: decoded by Ray Data's tasks, predicted by its actors,
    committed here.
    """
    ray = self.ray
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    cores = int(ray.cluster_resources()["CPU"])
    placement = choose_placement(
        replace(run.settings, device="cpu", workers=1), run.manifest.n_images
    )
    n, size = run.manifest.n_images, run.manifest.shard_size
    indices = [
        index for shard in shards for index in range(shard * size, min(n, (shard + 1) * size))
    ]
    dataset = (
        ray.data.from_items(
            [{"index": index} for index in indices], override_num_blocks=-(-len(indices) // 64)
        )
        .map_batches(Decode(run), batch_size=placement.batch_size, num_cpus=0.5)
        .map_batches(
            Predict,
            fn_constructor_args=(run.settings,),
            batch_size=placement.batch_size,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=cores),
        )
    )
    rows = Rows(run.job.pending(), run.identity, run.id)
    made_by = Provenance("fp32", "cpu", library_versions())
    with ShardWriter(run.job, run.manifest, run.id, made_by) as writer:
        for block in dataset.iter_batches(batch_size=None, batch_format="pandas"):
            of_shards = defaultdict(list)
            for row in block.itertuples():
                of_shards[row.index // size].append(row)
            for shard, of_shard in of_shards.items():
                writer.add(shard, rows.make(*_as_batch(shard, of_shard), datetime.now(UTC)))
    return Labelled(Stages(), placement.to_record())


def _as_batch(shard: int, rows: list[Any]) -> tuple[Batch, Predictions]:
    images = torch.empty(len(rows), 0)
    batch = Batch(
        shard, [row.index for row in rows], images, [row.facts for row in rows], [], 0.0, 0.0
    )
    class_ids, probabilities = (
        np.array([getattr(row, name) for row in rows]) for name in ("class_ids", "best")
    )
    return batch, Predictions(class_ids, probabilities, np.ones(len(rows), dtype=np.bool_))


class Decode:
    """Indices -> images; the photos of this benchmark all decode."""

    def __init__(self, run: Run) -> None:
        plan, size, settings = run.job.plan_copy(), run.manifest.shard_size, run.settings
        self.dataset = BatchDataset(
            plan, size, load_model(settings).preprocess, settings.max_pixels
        )

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        register_formats()
        torch.set_num_threads(1)
        batch = self.dataset[block["index"].tolist()]
        assert not batch.failures
        return {
            "index": np.array(batch.indices),
            "image": batch.images.numpy(),
            "facts": _objects(batch.facts),
        }


def _objects(facts: list[Any]) -> Any:
    array = np.empty(len(facts), dtype=object)
    array[:] = facts
    return array


class Predict:
    """Images -> the best classes; an actor, which loads the model once."""

    def __init__(self, settings: Any) -> None:
        torch.set_num_threads(1)
        placement = choose_placement(replace(settings, device="cpu", workers=1), 1)
        self.predictor = Predictor(load_model(settings), placement, settings.top_k, Console())

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(np.ascontiguousarray(block["image"]))
        n = len(images)
        done = self.predictor(Batch(0, list(range(n)), images, [], [], 0.0, 0.0))
        columns = {"index": block["index"], "facts": block["facts"]}
        return columns | {"class_ids": done.class_ids, "best": done.probabilities}


def label(way: str, photos: Path, work: Path, ray: Any) -> float | None:
    """Label photos in one of the ways; return the seconds, None where it was not done after a
    while.
    """
    command = [sys.executable, "-m", "benchmarks.ray_ways", "--way", way, str(photos)]
    command += [
        "--out",
        str(work / f"{way}.parquet"),
        "--quiet",
        "--model",
        str(work / "bundle"),
        "--restart",
        "--audit",
        "0",
    ]
    command += ["--engine", "ray", "--ray-address", ray.address]
    started = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    if ran.returncode:
        sys.exit(f"{way} failed:\n{ran.stderr}")
    return time.perf_counter() - started


def measure(photos: Path, work: Path, rounds: int) -> dict[str, dict[str, list[float | None]]]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    seconds: dict[str, dict[str, list[float | None]]] = {
        what: defaultdict(list) for what in CLUSTERS
    }
    for _ in range(rounds):
        for what in CLUSTERS:
            for way in WAYS:
                with cluster(
                    [set(cores)] if what == "one node" else [{core} for core in cores]
                ) as ray:
                    if what == "one is killed":
                        victim = sorted(ray.worker_nodes, key=lambda node: str(node.unique_id))[0]
                        killing = threading.Timer(_KILLED_AFTER_S, ray.remove_node, (victim, False))
                        killing.start()
                    taken = label(way, photos, work, ray)
                    seconds[what][way].append(taken)
                    print(
                        f"{what:<14} {way:<7} {'not done' if taken is None else f'{taken:7.2f} s'}",
                        flush=True,
                    )
                    if taken is not None:
                        same_as_first(work, way)
    return seconds


def same_as_first(work: Path, way: str) -> None:
    """Whether all ways lead to the same labels."""
    columns = ["path", "status", "label"]
    first, other = (
        pd.read_parquet(work / f"{name}.parquet", columns=columns) for name in (WAYS[0], way)
    )
    assert first.equals(other), f"{way} labelled otherwise"


def main() -> None:
    if sys.argv[1:2] == ["--way"]:  # one contender
        way = sys.argv[2]
        if way != "tasks":
            setattr(Cluster, "label", {"actors": by_actors, "data": by_ray_data}[way])  # noqa: B010 - for mypy
        label_images(sys.argv[3:], standalone_mode=True)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = make_photos(arguments.source, "small", arguments.images, work)
        make_models(ARCH, work)
        seconds = measure(photos, work, arguments.rounds)
    medians: dict[str, dict[str, float | None]] = {}
    for what, ways in seconds.items():
        medians[what] = {}
        for way, times in ways.items():
            done = [taken for taken in times if taken is not None]
            medians[what][way] = (
                round(statistics.median(done), 2) if len(done) == len(times) else None
            )
    print(
        json.dumps(
            {"benchmark": "ray_ways", "arch": ARCH, "images": arguments.images, "median_s": medians}
        )
    )


if __name__ == "__main__":
    main()
