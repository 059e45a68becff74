"""This machine as a labeller: the way of the images, load -> predict -> write -> commit.

Also what every task on a Ray cluster does with its shards: whoever has the manifest, the plan and
the model can take shards of a job.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.plan import shard_size_for
from jobs.receipts import Provenance
from jobs.storage.arrow import map_arrow
from pipeline.console import Progress
from pipeline.errors import AuditError, time_is_up
from pipeline.load.batch import Batch
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, decoded_apart, load_batches
from pipeline.load.reuse import Claims, Reuse
from pipeline.settings import Settings
from pipeline.table.embeddings import EMBEDDINGS
from vit.classifier import Classifier, load_classifier

from .graph import Graph
from .identity import identify
from .labeller import Labelled, Run
from .placement import Placement, choose_device, choose_placement
from .predict import Predictor, Running, score_features
from .predict_graph import GraphPredictor, RunningGraph, predictor_of
from .predictions import Predictions
from .reference import label_again
from .reused_rows import ReusedRows
from .rows import Rows
from .runtime import Work, backbone_graph
from .shard_writer import ShardWriter
from .stages import Stages, timed


def load_model(settings: Settings) -> Classifier:
    return load_classifier(
        settings.model or "embedded",
        settings.labels,
        settings.arch,
        settings.preprocess,
        settings.templates,
        settings.activation,
    )


class Machine:
    """The labeller of a local run, and of a process on a Ray node, with its model loaded.

    Raises ModelError.
    """

    def __init__(self, settings: Settings) -> None:
        self.classifier = load_model(settings)
        self.identity = identify(self.classifier, settings.top_k)
        # A node of a cluster labels many times: in each with the same graph, kept on disk or not.
        self._graphs: dict[Any, tuple[Placement, Graph | None]] = {}

    def load(self) -> bool:
        return True

    def shard_size(self, n_images: int) -> int:
        return shard_size_for(n_images)

    def label(self, run: Run, shards: Sequence[int]) -> Labelled:
        placement = choose_placement(run.settings, run.manifest.n_images, self.classifier.precision)
        if not shards:
            return Labelled(Stages(), placement.to_record())
        work = Work(run.manifest.n_images, comes_again=run.manifest.counts["carried"] > 0)
        asked = (placement.runtime, placement.precision, run.settings.batch_size)
        key = (*asked, torch.get_num_threads())
        placed, graph = self._graphs.get(key) or backbone_graph(
            self.classifier, placement, work, run.console
        )
        placement = replace(placed, workers=placement.workers)
        run.console.info("placement", f"running on {placement.describe()}", placement.to_record())
        labelled = label_shards(run, self.classifier, placement, shards, graph)
        if graph is not None and labelled.placement["runtime"] == placed.runtime:
            self._graphs[key] = placed, graph
        return labelled

    def score(self, settings: Settings, features: NDArray[np.float32]) -> Predictions:
        device, _ = choose_device(settings.device)
        top_k = self.identity.fingerprint.top_k
        return score_features(self.classifier, device, top_k, features)

    def label_again(self, run: Run, n: int) -> dict[str, float]:
        # Anew: what is audited are also the weights in memory, and the files, which may have changed
        # while they were read or since.
        def load_anew() -> Classifier:
            classifier = load_model(run.settings)
            if identify(classifier, run.settings.top_k).fingerprint != run.manifest.fingerprint:
                raise AuditError(
                    "the model's files changed while the run was at work; run the same command "
                    "again"
                )
            return classifier

        preprocess = self.classifier.preprocess
        return label_again(run.job, run.manifest, run.settings, preprocess, load_anew, n)

    def close(self) -> None:
        """Nothing is at work here once `label` has returned."""


def label_shards(
    run: Run,
    classifier: Classifier,
    placement: Placement,
    shards: Sequence[int],
    graph: Graph | None = None,
) -> Labelled:
    """Label some shards of a frozen job; each leaves a part and a receipt. Raises TimeIsUp."""
    manifest, console, settings = run.manifest, run.console, run.settings
    dataset = BatchDataset(
        run.job.plan_copy(),
        manifest.shard_size,
        classifier.preprocess,
        settings.max_pixels,
        settings.image_column,
        settings.paths,
    )
    sampler = ShardBatchSampler(
        manifest.n_images, manifest.shard_size, shards, placement.batch_size
    )
    n_images, donors = sum(map(manifest.shard_rows, shards)), _donors(run)
    with Claims(n_images) as claims:
        batches = load_batches(
            dataset.with_reuse(Reuse(donors, claims)),
            sampler,
            placement.workers,
            console,
            settings.image_timeout,
            pin_memory=placement.device.type == "cuda",
        )
        keeps_features = EMBEDDINGS.name in manifest.products
        top_k = manifest.fingerprint.top_k
        placement, predictor = predictor_of(
            classifier, placement, graph, top_k, console, keeps_features
        )
        rows = Rows(run.job.pending(), run.identity, run.id)
        stages = Stages()
        made_by = Provenance(placement.precision, str(placement.device), placement.libraries)
        done = manifest.n_images - n_images
        with (
            Progress(console, manifest.n_images, done) as progress,
            ShardWriter(run.job, manifest, run.id, made_by) as writer,
        ):

            def labelled(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Predictions]]:
                for batch, predictions in predict_batches(predictor, timed(batches, stages)):
                    writer.add(batch.shard, rows.make(batch, predictions, datetime.now(UTC)))
                    stages.add(batch, predictions)
                    yield batch, predictions

            reused = ReusedRows(run, rows, writer, map_arrow(donors) if donors else None)
            for batch, predictions in labelled(batches):
                reused.add(batch)
                n_failed = len(batch.failures) + int((~predictions.is_finite).sum())
                progress.advance(len(batch), n_failed)
                if time.monotonic() > run.deadline and progress.done < manifest.n_images:
                    raise time_is_up(done + writer.n_rows, manifest.n_images, writer.n_rows > 0)
            for indices in reused.decoded_apart(placement.batch_size):
                list(labelled([decoded_apart(dataset, indices, settings.image_timeout)]))
    stages.write_s = writer.write_s
    return Labelled(stages, placement.to_record(), placement.libraries)


def _donors(run: Run) -> Path | None:
    """The rows that may give their labels, as a file; None where there are none, or where a node of a
    cluster does not see what they are in.
    """
    donors = run.job.donors_copy(run.manifest)
    is_seen = donors and all(place.exists() for place in run.settings.places.values())
    return donors if is_seen else None


def predict_batches(
    predictor: Predictor | GraphPredictor, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Predictions]]:
    """Predict batches in order.

    A GPU, or OpenVINO, always has the next one to work on while the results of one are used.
    """
    running: deque[tuple[Batch, Running | RunningGraph]] = deque()
    for batch in batches:
        running.append((batch, predictor.start(batch)))
        if len(running) > predictor.batches_ahead:
            batch, first = running.popleft()
            yield batch, first.finish()
    for batch, last in running:
        yield batch, last.finish()
