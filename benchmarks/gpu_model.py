"""The model alone on a device, in each way of running it; and what happens when memory runs out.

Ways:
    eager            the network as it is
    cuda_graph       the same, captured once and replayed
    compiled         torch.compile
    reduce_overhead  torch.compile, which captures graphs as well
    run, eager       as a run does it (label/predict.py): uint8 batches from the host, normalised,
    run, compiled    scored and brought back
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pipeline.console import Console
from pipeline.failures import ImageFacts
from pipeline.label.local import predict_batches
from pipeline.label.placement import choose_placement
from pipeline.label.predict import Predictor
from pipeline.load.batch import Batch
from pipeline.settings import DEFAULT_TOP_K, Settings
from vit.classifier import Classifier

WAYS = ("eager", "cuda_graph", "compiled", "reduce_overhead", "run, eager", "run, compiled")
_CUDA_ALONE = ("cuda_graph", "compiled", "reduce_overhead", "run, compiled")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_REPEATS = 3
_RETRY_IMAGES = 2048  # of ViT-B: 2.5 GB between two layers of an MLP, in bf16
_RETRY_MEMORY = 3 << 30  # bytes


def measure_model(
    classifier: Classifier, device: torch.device, batch_size: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a record of each way and precision: images/s, seconds until the first batch was done,
    and the most memory taken. One that cannot be measured says why.
    """
    # Most telling first, since the time may run out: fp16 is only to be compared with bf16.
    for precision, way in itertools.chain(
        (("bf16", way) for way in WAYS),
        (("fp16", way) for way in ("eager", "cuda_graph", "compiled")),
    ):
        record: dict[str, Any] = {"precision": precision, "way": way, "batch_size": batch_size}
        if device.type != "cuda" and way in _CUDA_ALONE:
            yield record | {"left_out": "needs CUDA"}
            continue
        try:
            yield record | _measure_way(classifier, device, precision, way, batch_size, seconds)
        except Exception as error:  # noqa: BLE001 - the other ways are measured all the same
            yield record | {"failed": f"{type(error).__name__}: {error}"[:300]}
        torch.compiler.reset()


@torch.inference_mode()
def _measure_way(
    classifier: Classifier,
    device: torch.device,
    precision: str,
    way: str,
    batch_size: int,
    seconds: float,
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    if way.startswith("run"):
        step = _run_step(classifier, device, precision, "compiled" in way, batch_size)
    else:
        step = _model_step(classifier, device, precision, way, batch_size)
    step(1)
    _wait(device)
    first_s = time.perf_counter() - began
    step(3)
    _wait(device)
    rates = [_rate(step, device, batch_size, seconds / _REPEATS) for _ in range(_REPEATS)]
    peak = torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None
    return {
        "images_per_s": round(statistics.median(rates), 1),
        "spread": [round(min(rates), 1), round(max(rates), 1)],
        "first_s": round(first_s, 2),
        "peak_mb": peak,
    }


def _model_step(
    classifier: Classifier, device: torch.device, precision: str, way: str, batch_size: int
) -> Callable[[int], None]:
    """What runs the backbone n times on one float batch that is on the device already."""
    dtype = _DTYPES[precision]
    backbone: Any = classifier.backbone.on(device, dtype)
    size = classifier.preprocess.crop_size
    inputs = torch.randn(batch_size, classifier.preprocess.in_chans, size, size, device=device)
    inputs = inputs.to(dtype)  # [B, C, H, W]
    if way == "compiled":
        backbone = torch.compile(backbone)
    elif way == "reduce_overhead":
        backbone = torch.compile(backbone, mode="reduce-overhead")
    elif way == "cuda_graph":
        return _repeat(_captured(backbone, inputs))
    return _repeat(lambda: backbone(inputs))


def _repeat(once: Callable[[], Any]) -> Callable[[int], None]:
    def step(n: int) -> None:
        for _ in range(n):
            once()

    return step


def _captured(backbone: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], None]:
    """Capture the backbone on these inputs; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries take their memory before the capture
        for _ in range(3):
            backbone(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backbone(inputs)
    held = backbone, inputs  # the graph reads them where they lie

    def replay() -> None:
        assert held
        graph.replay()

    return replay


def _run_step(
    classifier: Classifier, device: torch.device, precision: str, compile: bool, batch_size: int
) -> Callable[[int], None]:
    """What takes n batches from the host's memory to predictions, as a run does."""
    predictor = _predictor(classifier, device, precision, compile, batch_size)
    batch = _random_batch(classifier, batch_size)
    if device.type == "cuda":
        batch = batch.pin_memory()

    def step(n: int) -> None:
        for _ in predict_batches(predictor, itertools.repeat(batch, n)):
            pass

    return step


def _rate(
    step: Callable[[int], None], device: torch.device, n_images: int, seconds: float
) -> float:
    """Images/s; as many batches as take about `seconds`, and the device is waited for at the end."""
    began = time.perf_counter()
    step(1)
    _wait(device)
    n = max(3, round(seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    step(n)
    _wait(device)
    return n * n_images / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _predictor(
    classifier: Classifier, device: torch.device, precision: str, compile: bool, batch_size: int
) -> Predictor:
    settings = Settings(
        device=str(device), precision=precision, compile=compile, batch_size=batch_size
    )
    placement = choose_placement(settings, batch_size)
    return Predictor(classifier, placement, DEFAULT_TOP_K, Console())


def _random_batch(classifier: Classifier, n: int) -> Batch:
    size = classifier.preprocess.crop_size
    random = torch.Generator().manual_seed(0)
    images = torch.randint(
        0,
        256,
        (n, classifier.preprocess.in_chans, size, size),
        dtype=torch.uint8,
        generator=random,
    )
    return Batch(0, list(range(n)), images, [ImageFacts() for _ in range(n)], [], 0.0, 0.0)


def run_out_of_memory(
    classifier: Classifier, device: torch.device, n_images: int = _RETRY_IMAGES
) -> dict[str, Any]:
    """Give the model a batch that its memory does not hold; say how many images it took at once in
    the end, and whether the labels are those of small batches.

    On a GPU this process may have only 3 GB of it; on a CPU, where nothing of the kind is raised,
    the backbone raises for more than an eighth of the batch.
    """
    on_gpu = device.type == "cuda"
    batch = _random_batch(classifier, n_images)
    plain = _predictor(classifier, device, "bf16", False, max(1, n_images // 32))(batch)
    predictor = _predictor(classifier, device, "bf16", False, n_images)
    really_run = predictor.backbone

    def refuse(inputs: Tensor) -> Any:
        if len(inputs) > n_images // 8:
            raise torch.OutOfMemoryError("made up: more than an eighth of the batch")
        return really_run(inputs)

    if on_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(_RETRY_MEMORY / total, device)
        predictions = predictor(batch)
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    else:
        with mock.patch.object(predictor, "backbone", refuse):
            predictions = predictor(batch)
    same = float((predictions.class_ids[:, 0] == plain.class_ids[:, 0]).mean())
    return {
        "images": n_images,
        "at_once": predictor.limit,
        "was_made_up": not on_gpu,
        "retried": predictor.limit < n_images,
        "same_best_class": round(same, 4),
    }
