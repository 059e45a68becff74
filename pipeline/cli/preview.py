"""A look at a few photos: `label-images photo.jpg` prints the best classes and writes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.keys import sort_and_drop_repeated
from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.find.file_list import read_list
from pipeline.find.scan import scan
from pipeline.label.local import Machine
from pipeline.label.placement import WITHOUT_WORKERS, choose_placement
from pipeline.label.predict_graph import predictor_of
from pipeline.label.runtime import Work, backbone_graph
from pipeline.load.image_dataset import BatchDataset
from pipeline.load.loader import ShardBatchSampler, load_batches
from pipeline.path_names import printable
from pipeline.plan.choice import choose_model
from pipeline.preflight import check_paths
from pipeline.settings import Settings
from pipeline.so_many import so_many
from vit.errors import ModelError


@dataclass(frozen=True)
class Seen:
    """An image and its best classes, best first; or why there are none."""

    path: str
    labels: list[tuple[str, float]]
    error: tuple[str, str] | None = None  # code and detail

    @property
    def is_labelled(self) -> bool:
        return self.error is None

    @property
    def text(self) -> str:
        if self.error:
            return f"{printable(self.path)}\n  {self.error[0]}: {printable(self.error[1])}"
        lines = [f"  {probability:7.2%}  {printable(label)}" for label, probability in self.labels]
        return "\n".join([printable(self.path), *lines])

    def to_record(self) -> dict[str, Any]:
        code, detail = self.error or (None, None)
        labels = [
            {"label": label, "probability": probability} for label, probability in self.labels
        ]
        return {"path": self.path, "labels": labels, "error_code": code, "error_detail": detail}


def look(settings: Settings, console: Console) -> Iterator[Seen]:
    """Yield each image with what it was labelled as, in path order."""
    check_paths(settings)
    found = scan(settings.paths, settings.selection, read_list(settings.files_from))
    if not len(found.listing):
        raise UsageError(
            f"{so_many(found.n_raw, 'raw photo')} found and no other image; pip install "
            "'label-images[raw]' brings what reads them"
            if found.n_raw
            else "no images found; --include '*.EXT' takes other names than the usual ones"
        )
    listing = sort_and_drop_repeated(found.listing)
    chosen = choose_model(settings, None)
    chosen.announce(console)
    settings = chosen.settings
    try:
        machine = Machine(settings)
    except ModelError as error:
        raise chosen.explained(error) from error
    classifier = machine.classifier
    console.info("model", machine.identity.describe())
    for note in machine.identity.notes:
        console.info("model_note", note)
    placement, graph = backbone_graph(
        classifier,
        choose_placement(settings, len(listing), classifier.precision),
        Work(len(listing)),
        console,
    )
    dataset = BatchDataset(
        listing,
        len(listing),
        classifier.preprocess,
        settings.max_pixels,
        settings.image_column,
        settings.paths,
    )
    sampler = ShardBatchSampler(len(listing), len(listing), [0], placement.batch_size)
    workers = 0 if len(listing) <= WITHOUT_WORKERS else placement.workers
    batches = load_batches(
        dataset, sampler, workers, console, settings.image_timeout, in_order=True
    )
    top_k = machine.identity.fingerprint.top_k
    _, predict = predictor_of(classifier, placement, graph, top_k, console)
    for batch in batches:
        predictions = predict(batch)
        seen = {failure.index: (failure.code, failure.detail) for failure in batch.failures}
        labels: dict[int, list[tuple[str, float]]] = {}
        for row, index in enumerate(batch.indices):
            best = zip(predictions.class_ids[row], predictions.probabilities[row], strict=True)
            labels[index] = [
                (classifier.labels[class_id], float(probability)) for class_id, probability in best
            ]
            if not predictions.is_finite[row]:
                labels[index], seen[index] = [], ("not_finite", "the model's output was not finite")
        for index in sorted(labels.keys() | seen.keys()):
            yield Seen(listing["path"][index].as_py(), labels.get(index, []), seen.get(index))
