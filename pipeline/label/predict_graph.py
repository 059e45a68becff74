"""Batch -> Predictions where OpenVINO's graph runs the backbone (graph.py).

Several batches are under way at once: OpenVINO shares the cores out among them, and has the next one
at hand while this process makes rows of the last. An image has its own place in its batch, so what
becomes of it depends on no other.
"""

import time
from dataclasses import dataclass

import torch

from pipeline.console import Console
from pipeline.load.batch import Batch
from vit.classifier import Classifier
from vit.head import Head

from .graph import Graph, NoGraph, Started
from .placement import Placement
from .predict import Predictor, best_classes, one_thread
from .predictions import Predictions
from .runtime import without_graph


class GraphPredictor:
    """A graph, and the head that scores its features."""

    def __init__(self, graph: Graph, head: Head, top_k: int, keeps_features: bool = False) -> None:
        self.graph, self.head = graph, head
        self.top_k = min(top_k, head.n_classes)
        self.keeps_features = keeps_features
        self.batches_ahead = graph.n_at_once
        self.finished_at = 0.0

    def __call__(self, batch: Batch) -> Predictions:
        return self.start(batch).finish()

    def start(self, batch: Batch) -> "RunningGraph":
        """Begin with a batch, of at most the graph's size."""
        images, missing = batch.images, self.graph.batch_size - len(batch.images)
        if missing and len(images):
            with one_thread():
                images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        started = self.graph.start(images) if len(images) else None
        return RunningGraph(self, started, len(batch.images), time.perf_counter())


@dataclass(frozen=True)
class RunningGraph:
    """A batch that OpenVINO has; its results are there once `finish` returns."""

    predictor: GraphPredictor
    started: Started | None
    n: int
    started_at: float

    @torch.inference_mode()
    def finish(self) -> Predictions:
        """Wait for the features [n, F], and score them."""
        predictor = self.predictor
        features = torch.empty(0, predictor.head.n_features)
        if self.started is not None:
            features = self.started.finish()[: self.n]
        best = best_classes(predictor.head, features, predictor.top_k)
        class_ids, probabilities, is_finite = (tensor.numpy() for tensor in best)
        # Of the time in which several were under way, each second counts for one of them.
        now = time.perf_counter()
        seconds = now - max(self.started_at, predictor.finished_at)
        predictor.finished_at = now
        kept = features.numpy() if predictor.keeps_features else None
        return Predictions(class_ids, probabilities, is_finite, kept, 0.0, seconds)


def predictor_of(
    classifier: Classifier,
    placement: Placement,
    graph: Graph | None,
    top_k: int,
    console: Console,
    keeps_features: bool = False,
) -> tuple[Placement, Predictor | GraphPredictor]:
    """Who predicts on a placement: the graph, where there is one, or torch. Where a graph that was
    kept cannot be opened the placement is then torch's.

    Raises UsageError where OpenVINO was asked for.
    """
    if graph is not None:
        try:
            predictor = GraphPredictor(graph, classifier.head, top_k, keeps_features)
        except NoGraph as error:
            placement = without_graph(classifier, placement, error)
            message = f"OpenVINO's kept graph cannot be used, so torch runs the model: {error}"
            console.warn("graph_lost", message)
        else:
            return placement, predictor
    return placement, Predictor(classifier, placement, top_k, console, keeps_features)
