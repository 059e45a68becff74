"""The backbone as an OpenVINO graph: what runs it fastest on a CPU.

    export     the network of vit/model.py -> a graph for any size of batch
    compile    for this CPU, in one precision, for batches of one size: the fastest of a few. It takes
               pixels: normalising is part of it, where OpenVINO makes it part of the first layer
    check      are these torch's features? A graph that gives others is never used

The head stays where it is (predict.py): a graph gives features. Which runs use one, and where it is
kept, is runtime.py's work.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.classifier import Classifier
from vit.devices import bf16_support
from vit.preprocess import normalise

_HINTS = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names of precisions

# Sizes of batch that are tried, up to the first that takes longer than the seconds.
_BATCH_SIZES, _TRIAL_S = (4, 8, 16, 32), 2.0
# A smaller batch that is as fast but for this share is the better one: the last of a run is filled
# up, and no core is left without work for as long. But each batch costs the main process a
# millisecond or two, so it should take so many seconds at least.
_AS_FAST, _LEAST_S = 0.97, 0.05

# How far a graph's features may lie from torch's in float32, as a share of their length: so far, and
# three times as far as torch's own in the same precision.
_OFF = 1e-3
_OFF_QUANTISED = 0.02  # and twice as far as where it was quantised


class NoGraph(Exception):
    """Why there is no graph of a backbone. Torch runs it as well."""


class NotThere(NoGraph):
    """OpenVINO is not to be had, whatever the backbone: perhaps it is tomorrow."""


class Graph:
    """A backbone compiled for this CPU, in one precision, for batches of one size.

    It is opened when it is first used, so that workers may begin to decode such batches before.
    """

    def __init__(self, batch_size: int, open_compiled: Callable[[], Any]) -> None:
        self.batch_size, self._open_compiled = batch_size, open_compiled
        self.free: list[Any] = []

    @cached_property
    def compiled(self) -> Any:
        """OpenVINO's model. Raises NoGraph where it cannot be opened."""
        return self._open_compiled()

    @property
    def n_at_once(self) -> int:
        """So many batches keep all cores busy."""
        n: int = self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return n

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels uint8 [batch_size, C, H, W] -> float32 features [batch_size, F]."""
        return self.start(images).finish()

    def start(self, images: Tensor) -> "Started":
        """Begin with pixels, which must stay as they are until the features are there."""
        request = self.free.pop() if self.free else self.compiled.create_infer_request()
        pixels = images.contiguous().numpy()
        request.set_input_tensor(openvino().Tensor(pixels, shared_memory=True))
        request.start_async()
        return Started(self, request, pixels)

    def to_bytes(self) -> bytes:
        data: bytes = self.compiled.export_model().getvalue()
        return data


@dataclass(frozen=True)
class Started:
    """A batch that OpenVINO has begun with."""

    graph: Graph
    request: Any
    pixels: NDArray[np.uint8]  # not to be freed meanwhile

    def finish(self) -> Tensor:
        """Wait for the features, float32 [batch_size, F]."""
        self.request.wait()
        features = torch.from_numpy(self.request.get_output_tensor().data.copy())
        self.graph.free.append(self.request)
        return features


def openvino() -> Any:
    """The library. Raises NotThere where it is not installed, or does not load."""
    # At each import it would report to its makers that it is used. A module that is None is one that
    # is not installed, and without this one it reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise NotThere(f"OpenVINO does not load ({error})") from error
    return openvino


def make_graph(classifier: Classifier, precision: str, batch_size: int | None) -> Graph:
    """Export the backbone, compile it, and check what it computes.

    Without a batch size the fastest of a few is taken. Raises NoGraph where OpenVINO refuses the
    backbone, or computes something else.
    """
    openvino()  # before the backbone is exported in vain
    images = made_up_images(classifier)
    try:
        exported = (
            read_graph(classifier.graph)
            if classifier.graph
            else export(classifier, images, precision)
        )
        graph = (
            compile_graph(exported, classifier, precision, batch_size)
            if batch_size
            else _fastest(exported, classifier, precision, images)
        )
        _check(graph, classifier, images, precision)
    except (NoGraph, MemoryError):
        raise
    except Exception as error:  # exporter and converter have dozens of kinds of their own
        if "can't allocate memory" in str(error):  # torch's, for which there may be some tomorrow
            raise MemoryError(str(error)) from error
        raise NoGraph(f"OpenVINO does not take this model ({first_line(error)})") from error
    return graph


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def made_up_images(classifier: Classifier) -> Tensor:
    """Two images' pixels, uint8 [2, C, H, W], always the same ones."""
    size, channels = classifier.model.config.img_size, classifier.model.config.in_chans
    shape, generator = (2, channels, size, size), torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def load_graph(data: Any, precision: str, batch_size: int) -> Graph:
    """The graph in uint8 `data`, Graph.to_bytes'. Raises NoGraph where it does not fit here."""
    ov = openvino()
    try:
        compiled = ov.Core().import_model(ov.Tensor(data), "CPU", _settings(precision))
    except RuntimeError as error:
        raise NoGraph(f"the kept graph does not load ({first_line(error)})") from error
    return Graph(batch_size, lambda: compiled)


def read_graph(path: Path) -> Any:
    """A graph for batches of any size, from its file."""
    return openvino().Core().read_model(path)


def export(classifier: Classifier, images: Tensor, precision: str) -> Any:
    """The backbone as a graph of normalised images, for batches of any size; which images [2, C, H,
    W] it is shown does not matter.
    """
    # The steps of attention are faster in int8 and fp32, and not measured in bf16
    # (benchmarks/attention_forms.py).
    backbone = classifier.backbone if precision == "bf16" else classifier.backbone.in_steps()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own parts
        sizes = {0: torch.export.Dim("batch", min=2)}
        program = torch.export.export(
            backbone,
            (normalise(images, classifier.preprocess),),
            dynamic_shapes=(sizes,),
            strict=False,
        )
        return openvino().convert_model(program)


def _settings(precision: str) -> dict[str, Any]:
    if precision == "int8":  # what is not quantised, such as norms
        precision = "bf16" if bf16_support(torch.device("cpu")) else "fp32"
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "THROUGHPUT",  # some batches at once, each on some of the threads
        "ENABLE_CPU_PINNING": False,  # workers decode on the same cores
    }


def compile_graph(exported: Any, classifier: Classifier, precision: str, batch_size: int) -> Graph:
    """Compile a graph of normalised images for pixels, in a precision, for batches of a size."""
    from openvino.preprocess import PrePostProcessor

    ov, preprocess = openvino(), classifier.preprocess
    model = exported.clone()
    model.reshape({0: [batch_size, preprocess.in_chans, *[preprocess.crop_size] * 2]})
    pixels = PrePostProcessor(model)
    pixels.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NCHW"))
    pixels.input().model().set_layout(ov.Layout("NCHW"))
    steps = pixels.input().preprocess().convert_element_type(ov.Type.f32)
    steps.mean([255 * value for value in preprocess.mean])
    steps.scale([255 * value for value in preprocess.std])
    compiled = ov.Core().compile_model(pixels.build(), "CPU", _settings(precision))
    return Graph(batch_size, lambda: compiled)


def _fastest(exported: Any, classifier: Classifier, precision: str, images: Tensor) -> Graph:
    """Compile for the best of some sizes of batch."""
    took: dict[int, float] = {}  # seconds of a batch, by its size
    for batch_size in _BATCH_SIZES:
        # One graph at a time: each is as large as the model.
        took[batch_size] = _seconds(
            compile_graph(exported, classifier, precision, batch_size), images
        )
        if took[batch_size] > _TRIAL_S:
            break
    return compile_graph(exported, classifier, precision, best_batch_size(took))


def _seconds(graph: Graph, images: Tensor) -> float:
    """How long a batch takes, where as many as the graph likes are under way."""
    batch, seconds = _filled(images, graph.batch_size), []
    for _ in range(3):
        started = time.perf_counter()
        for each in [graph.start(batch) for _ in range(graph.n_at_once)]:
            each.finish()
        seconds.append((time.perf_counter() - started) / graph.n_at_once)
    return min(seconds)


def best_batch_size(took: dict[int, float]) -> int:
    """The size to use, of those whose batches took so many seconds."""
    rates = {size: size / seconds for size, seconds in took.items()}
    as_fast = [size for size in took if rates[size] >= _AS_FAST * max(rates.values())]
    return min((size for size in as_fast if took[size] >= _LEAST_S), default=max(as_fast))


def _filled(images: Tensor, batch_size: int) -> Tensor:
    """The images over and over, as many as a batch has."""
    return images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]


def how_far_off(graph: Graph, classifier: Classifier, images: Tensor) -> float:
    """How far a graph's features lie from torch's in float32, as a share of their length."""
    with torch.inference_mode():
        found = graph(_filled(images, graph.batch_size))[: len(images)]
        return _off(found, classifier.backbone(normalise(images, classifier.preprocess)))


def _off(found: Tensor, right: Tensor) -> float:
    """The largest distance of two features [B, F], as a share of the right one's length."""
    return float(((found - right).norm(dim=1) / right.norm(dim=1)).max())


def _check(graph: Graph, classifier: Classifier, images: Tensor, precision: str) -> None:
    """Raise NoGraph where features are farther from torch's than the precision makes them."""
    off = how_far_off(graph, classifier, images)
    if classifier.quantised:
        allowed = 2 * classifier.quantised.off + _OFF_QUANTISED
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        with torch.inference_mode():
            right = classifier.backbone(normalise(images, classifier.preprocess))
            rounded = classifier.backbone.on(torch.device("cpu"), dtype)(
                normalise(images, classifier.preprocess, dtype)
            )
            allowed = 3 * _off(rounded.float(), right) + _OFF
    if not off <= allowed:  # also where it is no number
        raise NoGraph(
            f"OpenVINO's features are {off:.2g} of their length off here in {precision}, and "
            f"{allowed:.2g} is allowed"
        )
