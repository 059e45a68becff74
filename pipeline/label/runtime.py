"""What runs the backbone on a CPU: OpenVINO where its graph is kept or repays making, torch else.

Making a graph takes as long as labelling some hundred images, and is done once for a model, a
precision and a machine (kept_graphs.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.console import Console
from pipeline.errors import UsageError
from vit.classifier import Classifier
from vit.stem import stem_macs

from .graph import Graph, NoGraph
from .kept_graphs import KeptGraph
from .placement import Placement

_MAKING_S = 10  # about how long a graph takes to be made, on any number of cores
# About how many core-seconds it saves, beside torch: of a billion of a Transformer's multiply-adds,
# and of an image's way through a stem, whose convolutions torch is slow at.
_SAVED_A_GMAC, _SAVED_A_STEM = 0.001, 0.008
_FEW = 16  # images; a graph's batch is filled up, and torch's need not be
_NIGHTS = 30  # a job that comes again repays in a month of such nights


@dataclass(frozen=True)
class Work:
    """How much there is to do: images, and whether such a run comes again, as a nightly one does."""

    n_images: int
    comes_again: bool = False


def backbone_graph(
    classifier: Classifier, placement: Placement, work: Work, console: Console
) -> tuple[Placement, Graph | None]:
    """The graph for a placement that has OpenVINO, and the placement with its size of batch. One that
    is kept is opened when it is first used: until then workers can decode already.

    Where torch is the better choice, or OpenVINO refuses: the placement with torch and the reason,
    and no graph. Raises UsageError where OpenVINO was asked for and cannot do it.
    """
    if placement.runtime != "openvino":
        return placement, None
    is_asked = _is_asked(classifier, placement)
    asked_batch = placement.reasons["batch_size"] == "asked for"
    try:
        if work.n_images < _FEW and not is_asked:
            raise NoGraph("too few images to fill a batch")
        kept = KeptGraph.of(
            classifier, placement.precision, placement.batch_size if asked_batch else None
        )

        def make(batch_size: int | None = None) -> Graph:
            if not is_asked:
                _refuse_where_dear(classifier, work)
            return _made(kept, classifier, console, batch_size)

        if kept_size := kept.kept_batch_size(tries_again=is_asked):
            reason, graph = "its graph is kept", _put_off(kept, kept_size, make)
        else:
            reason, graph = "its graph was made for this and later runs", make()
    except NoGraph as error:
        return without_graph(classifier, placement, error), None
    reasons = {**placement.reasons, "runtime": placement.reasons["runtime"] if is_asked else reason}
    if not asked_batch:
        reasons["batch_size"] = "measured once on this machine"
    return replace(placement, batch_size=graph.batch_size, reasons=reasons), graph


def without_graph(classifier: Classifier, placement: Placement, error: NoGraph) -> Placement:
    """The placement with torch. Raises UsageError where OpenVINO was asked for."""
    if classifier.quantised:
        raise UsageError(
            f"{classifier.name} is quantised, which OpenVINO alone can run: {error}; use the model "
            "that it was made of"
        ) from error
    if _is_asked(classifier, placement):
        raise UsageError(f"--runtime openvino: {error}; leave it out, or use torch") from error
    reasons = {**placement.reasons, "runtime": str(error)}
    return replace(placement, runtime="torch", reasons=reasons)


def _is_asked(classifier: Classifier, placement: Placement) -> bool:
    """Whether OpenVINO and no other is to run the backbone."""
    return bool(classifier.quantised) or placement.reasons["runtime"] == "asked for"


def _put_off(kept: KeptGraph, batch_size: int, make: Callable[[int], Graph]) -> Graph:
    """The graph that is kept, loaded when it is first used; made again if it is damaged by then."""

    def open_compiled() -> Any:
        return (kept.load(batch_size) or make(batch_size)).compiled

    return Graph(batch_size, open_compiled)


def _made(
    kept: KeptGraph, classifier: Classifier, console: Console, batch_size: int | None = None
) -> Graph:
    console.info(
        "graph",
        f"making OpenVINO's graph of {classifier.name} for this machine, once: it takes some "
        "seconds, and is kept for the next run",
        {"folder": str(kept.folder)},
    )
    try:
        graph, why_not = kept.make(classifier, batch_size)
    except MemoryError as error:
        raise NoGraph("not enough memory to make OpenVINO's graph") from error
    if why_not:
        console.warn(
            "graph_not_kept",
            f"OpenVINO's graph is not kept ({why_not}), so each run makes it anew; let "
            "$XDG_CACHE_HOME name a folder that can be written to, or use --runtime torch",
        )
    return graph


def _refuse_where_dear(classifier: Classifier, work: Work) -> None:
    """Raise NoGraph where making a graph takes longer than it saves."""
    n_images = work.n_images * (_NIGHTS if work.comes_again else 1)
    if n_images * saved_s(classifier) < _MAKING_S:
        raise NoGraph("too few images to repay making OpenVINO's graph")


def saved_s(classifier: Classifier) -> float:
    """About how many seconds less an image takes with a graph."""
    has_stem = classifier.model.config.stem != "none"
    core_s = _SAVED_A_GMAC * gmacs(classifier) + _SAVED_A_STEM * has_stem
    return core_s / torch.get_num_threads()


def gmacs(classifier: Classifier) -> float:
    """About how many billions of multiply-adds the backbone takes for an image."""
    config = classifier.model.config
    tokens = config.n_patches + config.n_prefix_tokens
    matrices = sum(p.numel() for p in classifier.model.parameters() if p.ndim == 2)
    attention = 2 * config.depth * tokens * config.embed_dim
    stem = 0 if config.stem == "none" else stem_macs(config.img_size)
    return (stem + tokens * (matrices + attention)) / 1e9
