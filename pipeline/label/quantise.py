"""A model -> the same in int8: its backbone as a graph whose scales some photos have fixed.

The scales are an activation's range over the calibration photos, one for a tensor, and the same for
every image that comes later: a label does not depend on an image's neighbours. NNCF does it
(SmoothQuant, Xiao et al. 2023, arXiv:2211.10438; min-max ranges; bias correction). The head stays in
float32.
"""

import io
import logging
import random
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.keys import sort_and_drop_repeated
from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.find.scan import scan
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.settings import Settings
from pipeline.so_many import so_many
from vit.classifier import Classifier
from vit.preprocess import normalise

from .graph import (
    Graph,
    NoGraph,
    compile_graph,
    export,
    first_line,
    how_far_off,
    made_up_images,
    openvino,
)
from .placement import WITHOUT_WORKERS, usable_cores, workers_for

CALIBRATE, COMPARE = 300, 700  # photos at most
LEAST = 40  # photos, half of them to compare
_MOST_OFF = 0.45  # farther, and the check on other machines (graph.py) would let anything pass
_BATCH_SIZE = 8


@dataclass(frozen=True)
class Agreement:
    """How a quantised model compares with its float self on photos that did not calibrate it.

    `same_best` is a share of the photos; differences are of the probability of the float model's
    best class. The accuracies are None where the photos' folders are not the model's classes.
    """

    photos: int
    same_best: float
    mean_difference: float
    largest_difference: float
    labelled_photos: int = 0
    accuracy: float | None = None
    accuracy_in_float: float | None = None

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class QuantisedGraph:
    """A calibrated graph, as OpenVINO's model, with what is to be known of it."""

    model: Any
    off: float  # vit.checkpoints.bundle.Quantised
    agreement: Agreement
    calibrated_on: int


def check_installed() -> None:
    """Raise UsageError without NNCF, or OpenVINO."""
    try:
        openvino()
        # What NNCF loads of torch would warn that it finds no compiler for CUDA.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        import nncf  # noqa: F401
    except (NoGraph, ImportError) as error:
        raise UsageError(
            f"quantising needs OpenVINO and NNCF ({error}): pip install 'label-images[int8]'"
        ) from error


def quantise(classifier: Classifier, photos: Path, console: Console) -> QuantisedGraph:
    """Calibrate the backbone in int8 on half of some photos, and compare it on the others.

    Raises UsageError where there are too few photos, or OpenVINO does not take the model.
    """
    if classifier.quantised:
        raise UsageError(f"{classifier.name} is quantised already")
    names, pixels = _read(classifier, photos, console)
    n_calibrate = min(CALIBRATE, len(names) // 2)
    calibration, rest = pixels[:n_calibrate], pixels[n_calibrate:]
    images = made_up_images(classifier)
    try:
        exported = export(classifier, images, "int8")
        console.info(
            "quantising", f"calibrating on {n_calibrate:,} photos", {"photos": n_calibrate}
        )
        model = calibrated(exported, calibration, classifier)
        graph = compile_graph(model, classifier, "int8", _BATCH_SIZE)
        off = how_far_off(graph, classifier, images)
        float_graph = compile_graph(exported, classifier, "fp32", _BATCH_SIZE)
    except MemoryError:
        raise
    except Exception as error:  # exporter, converter and NNCF have dozens of kinds of their own
        raise UsageError(
            f"{classifier.name} cannot be quantised: OpenVINO or NNCF does not take it "
            f"({first_line(error)}); use it as it is"
        ) from error
    if not off < _MOST_OFF:  # also where it is no number
        raise UsageError(
            f"{classifier.name} does not bear quantising: in int8 its features are {off:.2g} of "
            "their length off; use it as it is"
        )
    console.info("comparing", f"comparing on {len(rest):,} other photos", {"photos": len(rest)})
    ours, theirs = (_scores(each, classifier, rest) for each in (graph, float_graph))  # [n, K]
    agreement = _agreement(ours, theirs, _targets(classifier, names[n_calibrate:]))
    return QuantisedGraph(model, round(off, 6), agreement, n_calibrate)


def _read(classifier: Classifier, folder: Path, console: Console) -> tuple[list[str], Tensor]:
    """Some photos of a folder, drawn once for all: paths, and pixels uint8 [n, C, H, W]."""
    listing = sort_and_drop_repeated(scan([folder]).listing)
    # By the same draw each time: a bundle can be made again.
    chosen = random.Random(0).sample(range(len(listing)), min(len(listing), CALIBRATE + COMPARE))
    listing = listing.take(pa.array(sorted(chosen), pa.int64()))
    settings, n = Settings(), len(listing)
    dataset = BatchDataset(
        listing, max(n, 1), classifier.preprocess, settings.max_pixels, places=[folder]
    )
    sampler = ShardBatchSampler(n, max(n, 1), [0] if n else [], _BATCH_SIZE)
    workers = 0 if n <= WITHOUT_WORKERS else workers_for(torch.device("cpu"), usable_cores())
    paths, found = listing["path"].to_pylist(), dict[int, Tensor]()
    for batch in load_batches(dataset, sampler, workers, console, settings.image_timeout):
        found |= dict(zip(batch.indices, batch.images.clone(), strict=True))
        for failure in batch.failures:
            path = paths[failure.index]
            console.warn("left_out", f"left out: {path}: {failure.code}: {failure.detail}")
    if len(found) < LEAST:
        raise UsageError(
            f"{folder} has {so_many(len(found), 'photo')} that can be used, and calibrating takes at least "
            f"{LEAST}, better {2 * CALIBRATE}: name a folder with more of the kind you label"
        )
    order = list(found)
    random.Random(1).shuffle(order)
    return [paths[index] for index in order], torch.stack([found[index] for index in order])


def calibrated(exported: Any, pixels: Tensor, classifier: Classifier) -> Any:
    """The graph with scales from these photos."""
    import nncf

    def inputs(index: int) -> NDArray[np.float32]:
        array: NDArray[np.float32] = normalise(
            pixels[index : index + 1], classifier.preprocess
        ).numpy()
        return array

    nncf.set_log_level(logging.ERROR)
    # Its bars: stdout is for results, and a log has no use for them.
    with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        return nncf.quantize(
            exported.clone(),
            nncf.Dataset(range(len(pixels)), inputs),
            subset_size=len(pixels),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )


@torch.inference_mode()
def _scores(graph: Graph, classifier: Classifier, pixels: Tensor) -> Tensor:
    """Scores [n, K] of photos uint8 [n, C, H, W]."""
    scores = []
    for batch in pixels.split(graph.batch_size):
        filled = torch.cat(
            [batch, batch.new_zeros(graph.batch_size - len(batch), *batch.shape[1:])]
        )
        scores.append(classifier.scores(graph(filled)[: len(batch)]))
    return torch.cat(scores)


def _targets(classifier: Classifier, paths: list[str]) -> Tensor:
    """The class of each photo by its folder's name, a label or an id; -1 where it is none."""
    classes = {name: class_id for class_id, name in enumerate(classifier.labels)}
    classes |= {name: class_id for class_id, name in enumerate(classifier.label_ids)}
    return torch.tensor([classes.get(Path(path).parent.name, -1) for path in paths])


def _agreement(ours: Tensor, theirs: Tensor, targets: Tensor) -> Agreement:
    """Compare scores [n, K] of the quantised model and of its float self; `targets` [n]."""
    best = theirs.argmax(dim=1)  # [n]
    rows = torch.arange(len(best))
    differences = (ours[rows, best] - theirs[rows, best]).abs()
    known = targets >= 0
    accuracy, in_float = (
        (scores.argmax(dim=1) == targets)[known].float().mean().item() if known.any() else None
        for scores in (ours, theirs)
    )
    return Agreement(
        photos=len(best),
        same_best=(ours.argmax(dim=1) == best).float().mean().item(),
        mean_difference=differences.mean().item(),
        largest_difference=differences.max().item(),
        labelled_photos=int(known.sum()),
        accuracy=accuracy,
        accuracy_in_float=in_float,
    )
