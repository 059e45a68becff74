"""How good a head from a few examples is: `vit.training.fit` beside scikit-learn and the model's own.

    python -m benchmarks.examples TRAIN.parquet... --val VAL.parquet

Tables have the columns `image` (encoded bytes) and `label` (class_id of the embedded model). Sets
of ten classes, every twentieth from another start; the first 20 photos of each are the examples,
all their validation photos the test. Prints one JSON line a set: accuracies in percent on the
validation photos, of the fit, of scikit-learn's LogisticRegression on the same features (as the fit
scales them, with its C; and raw, with scikit-learn's default), and of the model's own head among
the ten classes.
"""

import io
import json
from collections import Counter
from pathlib import Path

import click
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vit.classifier import Classifier, load_classifier
from vit.preprocess import fit_image, normalise
from vit.training.fit import fit_head


@click.command()
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--val", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--each", default=20, show_default=True, help="Examples of each class.")
def main(tables: tuple[Path, ...], val: Path, each: int) -> None:
    classifier = load_classifier()
    for start in (0, 5, 10, 15):
        ids = list(range(start, len(classifier.labels), 20))
        x, y = _features(classifier, tables, ids, each)
        test_x, test_y = _features(classifier, (val,), ids, None)
        fitted = fit_head(x, y)
        head = classifier.head
        own = (test_x @ head.weight.T + head.bias)[:, ids]
        lengths_1, test_1 = (F.normalize(each.double(), dim=-1) for each in (x, test_x))
        centre = lengths_1.mean(dim=0)
        scale = (lengths_1 - centre).std(correction=0)
        result = {
            "classes": [classifier.labels[class_id] for class_id in ids],
            "validation_photos": len(test_y),
            "cross_validated": fitted.accuracy,
            "fit": _accuracy(fitted.head.scores(test_x).argmax(dim=1), test_y),
            "scikit_learn_same": _theirs(
                (lengths_1 - centre) / scale, y, (test_1 - centre) / scale, test_y, fitted.strength
            ),
            "scikit_learn_default": _theirs(x, y, test_x, test_y, 1.0),
            "own_head": _accuracy(own.argmax(dim=1), test_y),
        }
        for name, value in result.items():
            if isinstance(value, float):
                result[name] = round(100 * value, 1)
        click.echo(json.dumps(result))


def _theirs(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, strength: float) -> float:
    regression = LogisticRegression(C=strength, max_iter=5000).fit(x.numpy(), y.numpy())
    return _accuracy(torch.from_numpy(regression.predict(test_x.numpy())), test_y)


def _accuracy(best: Tensor, targets: Tensor) -> float:
    return (best == targets).double().mean().item()


@torch.inference_mode()
def _features(
    classifier: Classifier, tables: tuple[Path, ...], ids: list[int], most: int | None
) -> tuple[Tensor, Tensor]:
    """Features [N, F] and class [N] of the first `most` photos of each of some classes."""
    images, targets, counts = [], [], Counter[int]()
    for path in tables:
        table = pq.read_table(path)
        for row, label in enumerate(table["label"].to_pylist()):
            if label not in ids or (most is not None and counts[label] >= most):
                continue
            counts[label] += 1
            with Image.open(io.BytesIO(table["image"][row].as_py())) as image:
                images.append(fit_image(image.convert("RGB"), classifier.preprocess))
            targets.append(ids.index(label))
    batches = [normalise(batch, classifier.preprocess) for batch in torch.stack(images).split(50)]
    return torch.cat([classifier.backbone(batch) for batch in batches]), torch.tensor(targets)


if __name__ == "__main__":
    main()
