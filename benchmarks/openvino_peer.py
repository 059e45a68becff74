"""OpenVINO beside label-images: the graphs that its user would make, and its own benchmark on them.

    write_graph      bundle -> models/openvino/float.xml    what a user does once, before any night
    write_int8       the same, quantised by NNCF on photos  models/openvino/int8.xml
    write_ours       the graph that a run makes itself      models/openvino/ours-....xml
    model_only       images/s of a graph by OpenVINO's benchmark_app

The network is ours (vit/model.py), converted as its user would do it, and as a run does it; shapes
are static.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from pipeline.label.graph import export, made_up_images, read_graph
from pipeline.load.decode import decode_image, register_formats
from pipeline.load.sample import Sample
from pipeline.settings import DEFAULT_MAX_PIXELS
from vit.classifier import Classifier, load_classifier
from vit.preprocess import normalise

_SUBSET = 300  # NNCF's own default number of calibration images

# What pip installs as `benchmark_app`; by its function, since the script may not be on the path.
_APP = "import sys; from openvino.tools.benchmark.main import main; sys.exit(main())"

# Settings of benchmark_app: several batches at once, or one on all cores.
PERFORMANCE_HINTS = ("throughput", "latency")

# By our names of precisions; an int8 graph says itself what is int8, and the rest is as OpenVINO
# likes it best.
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}


def graph_of(models: Path, precision: str) -> Path:
    return models / "openvino" / ("int8.xml" if precision == "int8" else "float.xml")


def write_graph(models: Path, batch_size: int) -> Path:
    """Convert the bundle's network, head and all: float32 [B, 3, H, W] -> logits [B, K]."""
    import openvino

    classifier = load_classifier(str(models / "bundle"))
    size = classifier.preprocess.crop_size
    shape = [batch_size, classifier.preprocess.in_chans, size, size]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch's, of tracing
        graph = openvino.convert_model(
            classifier.model, example_input=torch.zeros(shape), input=[shape]
        )
    file = graph_of(models, "fp32")
    file.parent.mkdir(exist_ok=True)
    openvino.save_model(graph, file, compress_to_fp16=False)
    return file


def write_int8(models: Path, photos: Path, batch_size: int) -> Path:
    """Quantise the graph as NNCF's documentation does a transformer, on up to 300 of the photos."""
    import nncf
    import openvino

    classifier = load_classifier(str(models / "bundle"))
    files = sorted(photos.iterdir())[: max(_SUBSET, batch_size)]
    files = (files * batch_size)[: max(len(files) // batch_size, 1) * batch_size]
    batches = [
        _inputs(classifier, files[start : start + batch_size])
        for start in range(0, len(files), batch_size)
    ]
    graph = nncf.quantize(
        openvino.Core().read_model(graph_of(models, "fp32")),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )
    file = graph_of(models, "int8")
    openvino.save_model(graph, file, compress_to_fp16=False)
    return file


def _inputs(classifier: Classifier, files: list[Path]) -> Any:
    register_formats()
    samples = [
        decode_image(place, file.read_bytes(), classifier.preprocess, DEFAULT_MAX_PIXELS)
        for place, file in enumerate(files)
    ]
    pixels = torch.stack([sample.pixels for sample in samples if isinstance(sample, Sample)])
    return normalise(pixels, classifier.preprocess).numpy()  # float32 [B, 3, H, W]


def write_ours(bundle: Path, precision: str, batch_size: int, file: Path) -> Path:
    """Write the graph that label-images runs for a bundle in a precision, for one size of batch:
    float32 [B, 3, H, W] -> features [B, F].
    """
    import openvino

    classifier = load_classifier(str(bundle))
    graph = (
        read_graph(classifier.graph)
        if classifier.graph
        else export(classifier, made_up_images(classifier), precision)
    )
    preprocess = classifier.preprocess
    graph.reshape({0: [batch_size, preprocess.in_chans, *[preprocess.crop_size] * 2]})
    file.parent.mkdir(exist_ok=True)
    openvino.save_model(graph, file, compress_to_fp16=False)
    return file


def model_only(graph: Path, precision: str, hint: str, seconds: int) -> float:
    """Images/s of a graph by benchmark_app, with the settings of a hint."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _APP, "-m", str(graph), "-d", "CPU", "-hint", hint]
        command += ["-t", str(seconds), "-json_stats"]
        command += ["-report_type", "no_counters", "-report_folder", folder]
        if precision in PRECISION_HINTS:
            command += ["-infer_precision", PRECISION_HINTS[precision]]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(f"benchmark_app failed:\n{ran.stdout[-2000:]}\n{ran.stderr}")
        report = json.loads((Path(folder) / "benchmark_report.json").read_text())
    return float(report["execution_results"]["throughput"])  # counts images, not batches
