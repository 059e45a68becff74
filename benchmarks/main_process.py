"""How many images a second can the main process handle, with decoding and the model stubbed out?

    python -m benchmarks.main_process --images 60000

It takes batches from the workers, makes rows of them and commits shards: what no faster device or
further core takes off it. Whole runs by the library, over files that are there, but workers hand on
one and the same picture and the model answers at once. Counted is the computing time of the main
process with its threads from the first batch to the last shard, so that it does not matter whether
two cores or sixteen feed it. At least 20,000 images a core-second are asked for. The last line is
JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pipeline.failures import Failure, ImageFacts
from pipeline.label import local
from pipeline.label.predict import Predictor
from pipeline.label.predictions import Predictions
from pipeline.library import label_images
from pipeline.load.batch import Batch, Clock
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.sample import Sample
from pipeline.settings import DEFAULT_TOP_K, Settings

from .machine import describe_cpu, load_average
from .models import make_bundle
from .photos import make_links

AT_LEAST = 20_000  # images a core-second


class _AnsweringAtOnce:
    """A running batch whose results are there already."""

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def finish(self) -> Predictions:
        return self.predictions


def measure(n_images: int, batch_size: int, workers: int | None, arch: str) -> dict[str, float]:
    """Label `n_images` made-up ones; return images/s by the main process's computing time and by
    the clock.
    """
    began: list[float] = []  # computing time and the clock, at the first batch
    ended: list[float] = []
    really_label = local.label_shards

    def label_shards(*arguments: Any) -> Any:
        stages = really_label(*arguments)
        ended[:] = time.process_time(), time.perf_counter()
        return stages

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        classifier = make_bundle(arch, work / "bundle")
        photos = make_links(work / "photos", n_images)
        size, n_classes = classifier.preprocess.crop_size, classifier.head.n_classes
        picture = torch.zeros(classifier.preprocess.in_chans, size, size, dtype=torch.uint8)
        random = np.random.default_rng(0)
        ids = random.integers(0, n_classes, (batch_size, DEFAULT_TOP_K)).astype(np.int32)
        best = -np.sort(-random.random((batch_size, DEFAULT_TOP_K), np.float32), axis=1)

        def load(
            self: BatchDataset, index: int, clock: Clock, reading: object = None
        ) -> Sample | Failure:
            facts = ImageFacts(500, 375, "JPEG", 1, ["scaled_decode"], f"{index:032x}")
            return Sample(index, picture, facts)

        def start(self: object, batch: Batch) -> _AnsweringAtOnce:
            if not began:
                began[:] = time.process_time(), time.perf_counter()
            n = len(batch.indices)
            return _AnsweringAtOnce(Predictions(ids[:n], best[:n], np.ones(n, np.bool_)))

        settings = Settings(
            runtime="torch",  # it is stubbed out
            paths=(photos,),
            out=work / "labels.parquet",
            model=str(work / "bundle"),
            batch_size=batch_size,
            workers=workers,
            device="cpu",
            audit=0,  # which would find the labels wrong, and rightly so
        )
        with (
            mock.patch.object(BatchDataset, "load", load),  # workers are forked, and have it too
            mock.patch.object(Predictor, "start", start),
            mock.patch.object(local, "label_shards", label_shards),
        ):
            outcome = label_images(settings)
    assert outcome.images == n_images
    compute_s, wall_s = (after - before for before, after in zip(began, ended, strict=True))
    return {
        "images_per_core_s": round(n_images / compute_s, 1),
        "images_per_s": round(n_images / wall_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument(
        "--check", action="store_true", help="fail below 20,000 images a core-second"
    )
    arguments = parser.parse_args()
    load = load_average()
    rounds = [
        measure(arguments.images, arguments.batch_size, arguments.workers, arguments.arch)
        for _ in range(arguments.rounds)
    ]
    record = {
        "benchmark": "main_process",
        "images": arguments.images,
        "batch_size": arguments.batch_size,
        "cpu": describe_cpu(),
        "load_before": load,
        "rounds": rounds,
    } | {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print(
        f"{record['images_per_core_s']:,.0f} images a core-second of the main process (at least "
        f"{AT_LEAST:,}), {record['images_per_s']:,.0f} a second by the clock"
    )
    print(json.dumps(record))
    if arguments.check and record["images_per_core_s"] < AT_LEAST:
        sys.exit(1)


if __name__ == "__main__":
    main()
