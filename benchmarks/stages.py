"""How fast is each stage alone? Decoding without a model, and the model without decoding.

    python -m benchmarks.stages PHOTOS --model embedded

Both come from the run's own parts: its loader, its predictor, its choices. The bound is what the
cores could do if nothing were lost between the two: cores / (core-seconds to read and decode an
image + core-seconds of the model). The model goes through the same images over and over, for
--seconds. The last line is JSON.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.console import Console
from pipeline.find.scan import scan
from pipeline.label.local import load_model, predict_batches
from pipeline.label.placement import choose_placement
from pipeline.label.predict_graph import predictor_of
from pipeline.label.runtime import Work, backbone_graph
from pipeline.load.batch import Batch
from pipeline.load.decode import register_formats
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler
from pipeline.settings import DEFAULT_TOP_K, Settings

from .machine import describe_cpu, load_average


def measure(
    photos: Path,
    model: str,
    precision: str | None,
    runtime: str | None,
    at_most: int,
    seconds: float,
) -> dict[str, Any]:
    """Decode up to `at_most` images in this process, then run the model on them for some seconds."""
    load = load_average()
    settings = Settings(
        paths=(photos,),
        model=model,
        precision=precision,
        runtime=None if runtime == "auto" else runtime,
    )
    console = Console()
    classifier = load_model(settings)
    placement = choose_placement(settings, at_most, classifier.precision)
    placement, graph = backbone_graph(classifier, placement, Work(at_most), console)
    listing = scan([photos]).listing.slice(0, at_most)
    n = len(listing)
    register_formats()
    dataset = BatchDataset(listing, n, classifier.preprocess, settings.max_pixels)
    indices = list(ShardBatchSampler(n, n, [0], placement.batch_size))
    dataset[indices[0]]  # the first one imports the decoders
    before = time.process_time()
    batches = [dataset[chosen] for chosen in indices]
    decode_core_s = (time.process_time() - before) / n

    placement, predictor = predictor_of(classifier, placement, graph, DEFAULT_TOP_K, console)
    # Full ones: where the last of the photos fill up no batch, a graph takes as long for it.
    full = [batch for batch in batches if len(batch) == placement.batch_size] or batches
    first = itertools.islice(itertools.cycle(full), predictor.batches_ahead + 2)
    list(predict_batches(predictor, first))  # not counted: the first are slower
    started, done = time.perf_counter(), 0
    for batch, _ in predict_batches(predictor, _over_and_over(full, seconds)):
        done += len(batch)
    model_s = (time.perf_counter() - started) / done
    cores = torch.get_num_threads()
    return {
        "device": str(placement.device),
        "precision": placement.precision,
        "runtime": placement.runtime,
        "batch_size": placement.batch_size,
        "decode_only": round(cores / decode_core_s, 2),
        "model_only": round(1 / model_s, 2),
        "bound": round(cores / (decode_core_s + model_s * cores), 2),
        "cpu": describe_cpu(),
        "load_before": load,
    }


def _over_and_over(batches: list[Batch], seconds: float) -> Iterator[Batch]:
    """The batches, again and again, until the seconds are over."""
    ends = time.perf_counter() + seconds
    for batch in itertools.cycle(batches):
        yield batch
        if time.perf_counter() > ends:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--runtime", choices=["auto", "openvino", "torch"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3, help="of the model")
    arguments = parser.parse_args()
    result = measure(
        arguments.photos,
        arguments.model,
        arguments.precision,
        arguments.runtime,
        arguments.images,
        arguments.seconds,
    )
    print(f"images/s on {result['device']} in {result['precision']}: ", end="")
    print(", ".join(f"{name} {result[name]}" for name in ("decode_only", "model_only", "bound")))
    print(json.dumps({"benchmark": "stages", **result}))


if __name__ == "__main__":
    main()
