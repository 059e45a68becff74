"""OpenVINO's graph of a network whose attention is in steps, as a run has it but for bf16, and of one
with torch's own kernel for it.

    python -m benchmarks.attention_forms --arch vit_tiny_patch16_224

Both forms in fp32, in bf16 where the CPU has it, and in int8 where NNCF is there: images/s of the
backbone alone, in turns, with as many batches under way as OpenVINO likes. Weights and pixels are
made up; how fast a graph is does not depend on them. The last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline.label.graph import Graph, compile_graph, export, made_up_images
from pipeline.label.quantise import calibrated
from vit.devices import bf16_support

from .machine import describe_cpu, load_average
from .models import make_bundle

_CALIBRATE = 20  # images: scales do not change the speed


def make_graphs(arch: str, batch_size: int, work: Path) -> dict[str, Graph]:
    """The graphs to compare, by name."""
    classifier = make_bundle(arch, work / "bundle")
    images = made_up_images(classifier)
    pixels = torch.randint(0, 256, (_CALIBRATE, *images.shape[1:]), dtype=torch.uint8)
    floats = ["fp32", "bf16"] if bf16_support(torch.device("cpu")) else ["fp32"]
    graphs = {}
    for form, as_for in (("one kernel", "bf16"), ("in steps", "fp32")):
        exported = export(classifier, images, as_for)
        for precision in floats:
            graph = compile_graph(exported, classifier, precision, batch_size)
            graphs[f"{precision}, {form}"] = graph
        if importlib.util.find_spec("nncf"):
            quantised = calibrated(exported, pixels, classifier)
            graphs[f"int8, {form}"] = compile_graph(quantised, classifier, "int8", batch_size)
    return graphs


def images_per_s(graph: Graph, images: torch.Tensor, batches: int) -> float:
    started = time.perf_counter()
    for _ in range(batches):
        for running in [graph.start(images) for _ in range(graph.n_at_once)]:
            running.finish()
    return batches * graph.n_at_once * len(images) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="a turn")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        graphs = make_graphs(asked.arch, asked.batch_size, Path(folder))
    shape = list(next(iter(graphs.values())).compiled.input(0).shape)  # [B, C, H, W]
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    rates: dict[str, list[float]] = {name: [] for name in graphs}
    for round_ in range(asked.rounds + 1):
        for name, graph in graphs.items():
            rate = images_per_s(graph, images, asked.batches)
            if round_:  # the first one warms up
                rates[name].append(rate)
    medians = {name: round(statistics.median(all_), 1) for name, all_ in rates.items()}
    for name, all_ in rates.items():
        print(f"{name:<24} {medians[name]:8.1f} images/s, {min(all_):.1f} to {max(all_):.1f}")
    record = {
        "benchmark": "attention_forms",
        "arch": asked.arch,
        "batch_size": asked.batch_size,
        "images_per_s": medians,
        "best": {name: round(max(all_), 1) for name, all_ in rates.items()},
        "cpu": describe_cpu(),
        "load_before": load,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
