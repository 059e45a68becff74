"""A look at a few photos: `label-images photo.jpg` prints the best classes and writes nothing."""

from collections.abc import Iterator

import numpy as np

from jobs.plan import sort_and_drop_repeated

from .batch import BatchDataset
from .checks import check_paths
from .engine import choose_engine
from .errors import UsageError
from .filelist import read_list
from .loader import ShardBatchSampler, load_batches
from .machine import Machine
from .names import printable
from .predict import Predictor
from .progress import Console
from .scan import scan
from .settings import Settings

# Up to here images are decoded in this process: starting workers would take longer.
_WITHOUT_WORKERS = 64


def look(settings: Settings, console: Console) -> Iterator[tuple[str, bool]]:
    """Yield a text for each image, in path order, and whether it was labelled."""
    check_paths(settings)
    listing = scan(settings.paths, settings.wanted, read_list(settings.files_from)).listing
    if not len(listing):
        raise UsageError("no images found; --include '*.EXT' takes other names than the usual ones")
    listing = sort_and_drop_repeated(listing)
    machine = Machine(settings)
    classifier = machine.classifier
    console.info("model", machine.identity.describe())
    engine = choose_engine(settings, len(listing))
    dataset = BatchDataset(listing, len(listing), classifier.preprocess, settings.max_pixels, settings.image_column)
    sampler = ShardBatchSampler(len(listing), len(listing), [0], engine.batch_size)
    workers = 0 if len(listing) <= _WITHOUT_WORKERS else engine.workers
    batches = load_batches(dataset, sampler, workers, console, settings.image_timeout, in_order=True)
    predict = Predictor(classifier, engine, settings.top_k, console)
    for batch in batches:
        predictions = predict(batch)
        texts: dict[int, tuple[str, bool]] = {}
        for row, index in enumerate(batch.indices):
            best = zip(predictions.class_ids[row], predictions.probabilities[row], strict=True)
            lines = [
                f"  {probability:7.2%}  {printable(classifier.labels[class_id])}" for class_id, probability in best
            ]
            finite = bool(np.isfinite(predictions.probabilities[row]).all())
            texts[index] = "\n".join(lines if finite else ["  the model's output was not finite"]), finite
        for failure in batch.failures:
            texts[failure.index] = f"  {failure.code}: {printable(failure.detail)}", False
        for index in sorted(texts):
            text, labelled = texts[index]
            yield f"{printable(listing['path'][index].as_py())}\n{text}", labelled
