"""`models fit`: a folder of photos for each class and a backbone -> a bundle, and what to think of it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pipeline.console import Console
from pipeline.label.examples import Examples, read_examples
from pipeline.so_many import so_many
from vit.backbone import load_backbone
from vit.classifier import with_head
from vit.training.fit import MIN_EXAMPLES, Fitted, check_installed, fit_head
from vit.training.fit_card import check_place, write_fit

_PAIRS_SHOWN = 5
_DOUBTS_SHOWN = 20


def fit(
    folder: Path, model: str, arch: str | None, preprocess: str | None, out: Path, console: Console
) -> Iterator[str]:
    """Fit a head, write its bundle, and say how good it is, line by line."""
    check_installed()
    check_place(out)
    backbone = load_backbone(model, arch, preprocess)
    for note in backbone.notes:
        console.info("model_note", note)
    examples = read_examples(folder, backbone, MIN_EXAMPLES, console)
    for path, reason in examples.left_out:
        console.warn("left_out", f"left out: {path}: {reason}", {"path": path, "reason": reason})
    fitted = fit_head(examples.features, examples.targets)
    # Called as the bundle is: that is what its tables will say.
    classifier = with_head(backbone, fitted.head, examples.labels, name=out.name)
    counts = examples.counts
    n, n_right = len(examples.paths), round(fitted.accuracy * len(examples.paths))
    report = {
        "backbone": backbone.name,
        "backbone_sha256": backbone.weights_sha256,
        "n_classes": len(examples.labels),
        "n_examples": n,
        "n_features": fitted.head.n_features,
        "n_left_out": len(examples.left_out),
        "examples": counts,
        "folds": fitted.folds,
        "strength": fitted.strength,
        "temperature": fitted.head.temperature,
        "accuracy": fitted.accuracy,
        "calibration_error": fitted.calibration_error,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "version": version("label-images"),
        "scikit_learn": version("scikit-learn"),
    }
    write_fit(classifier, report, out)
    yield (
        f"{len(counts)} classes, {so_many(n, 'photo')} ({min(counts.values())} to {max(counts.values())} a "
        f"class), {fitted.head.n_features} features each"
    )
    yield (
        f"cross-validated accuracy {fitted.accuracy:.1%} ({n_right:,} of {n:,} photos, "
        f"{fitted.folds} folds), calibration error {fitted.calibration_error:.3f}"
    )
    yield from _confused(examples, fitted)
    yield from _doubts(examples, fitted)
    yield f"{out}: label with it by --model {out}"


def _confused(examples: Examples, fitted: Fitted) -> Iterator[str]:
    """The pairs of classes that are most often taken for each other."""
    counts: dict[tuple[str, str], int] = {}
    for target, best in zip(
        examples.targets.tolist(), fitted.scores.argmax(dim=1).tolist(), strict=True
    ):
        if target != best:
            first, second = sorted((target, best))
            pair = examples.labels[first], examples.labels[second]
            counts[pair] = counts.get(pair, 0) + 1
    if counts:
        yield "most often confused"
    most = sorted((-n, pair) for pair, n in counts.items())
    for n, (first_label, second_label) in most[:_PAIRS_SHOWN]:
        yield f"  {-n:5}  {first_label} and {second_label}"


def _doubts(examples: Examples, fitted: Fitted) -> Iterator[str]:
    """The examples that those without it take for another class, and are sure of it."""
    probabilities, best = fitted.scores.max(dim=1)
    doubted = sorted(
        (-probability, path, examples.labels[class_id])
        for path, target, class_id, probability in zip(
            examples.paths,
            examples.targets.tolist(),
            best.tolist(),
            probabilities.tolist(),
            strict=True,
        )
        if class_id != target and probability > 0.5
    )
    if doubted:
        photos = so_many(len(doubted), "photo")
        yield f"doubted: {photos} that the others take for another class; look there"
    for probability, path, label in doubted[:_DOUBTS_SHOWN]:
        yield f"  {path}: {label} {-probability:.1%}"
    if len(doubted) > _DOUBTS_SHOWN:
        yield f"  and {len(doubted) - _DOUBTS_SHOWN:,} more"
