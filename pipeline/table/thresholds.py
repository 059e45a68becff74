"""Thresholds: how each label's scores are distributed in a table of sigmoids, and where to cut.

A sigmoid scores each label by itself, and what a score means differs from model to model and from
label to label: SigLIP may say 0.02 of a photo that it is sure of. So the cut is looked for in the
scores themselves, of which nobody has said which are right. Scores are looked at as logits, which
is where a model works, and counted in bins: memory is of the labels, not of the rows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.storage.object_store import AnyPath, as_arrow
from pipeline.errors import TableError, UsageError

from .labels import LABELS
from .record import damaged
from .table import files_of, read_classes, read_record

# A float32 sigmoid is 1 from a logit of 17 on; below -30 there is nothing to tell apart.
_LOWEST, _HIGHEST, _WIDTH = -30.0, 18.0, 0.1
EDGES = np.linspace(_LOWEST, _HIGHEST, round((_HIGHEST - _LOWEST) / _WIDTH) + 1)
_CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
_N_BINS = len(_CENTRES)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_SMALLEST_GROUP = 10  # images
_LEAST_SPREAD = 2 * _WIDTH  # of a group: of fewer bins than that a spread says nothing
_ROWS_AT_ONCE = 8_192
_COLUMNS = ["top_k.list.element.class_id", "top_k.list.element.probability"]


@dataclass(frozen=True)
class LabelScores:
    """One label's scores, as far as they are known: `counts` [bins] by their logit, between EDGES.

    `quantiles` are those of QUANTILES, to a bin's width; `lowest` and `highest` are exact. `cut` is
    the suggested score, and `n_above` counts the images with that or more; both are None where
    there is none, and then `why` says so.
    """

    class_id: int
    label: str
    counts: NDArray[np.int64]
    lowest: float | None
    highest: float | None
    quantiles: tuple[float, ...]
    cut: float | None
    n_above: int | None
    why: str

    @property
    def n_known(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True)
class Thresholds:
    """`n_images` have labels. `top_k` of `n_classes` scores of each are in the table: where that is
    fewer, the scores of a label are unknown for the images that have as many better ones.
    """

    n_images: int
    top_k: int
    n_classes: int
    labels: list[LabelScores]


def read_thresholds(path: AnyPath) -> Thresholds:
    """Read a table's scores, a batch of rows at a time, and suggest a cut for each label.

    Raises UsageError for a table whose labels a softmax chose; TableError for no table of labels.
    """
    record = read_record(path, LABELS)
    if record is None:
        raise TableError(f"there is no table at {path}; the command that labels writes it")
    if record.fingerprint_fields.get("activation", "softmax") != "sigmoid":
        raise UsageError(
            f"the labels of {path} were chosen by a softmax: a photo's probabilities are shares of "
            "1 among all classes, so a label has no scores of its own to cut. Filter by how sure "
            "the choice was instead (WHERE probability > 0.5 in SQL), or label with a model that "
            "scores each class by itself (SigLIP with your own words, or one of many labels a "
            "photo)"
        )
    names = [entry["label"] for entry in read_classes(path)]
    scores = _Scores(len(names))
    for file in files_of(path):
        try:
            with pq.ParquetFile(as_arrow(file), page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS):
                    scores.add(batch["top_k"])
        except (OSError, pa.ArrowException, ValueError) as error:
            raise damaged(file, error, path) from error
    top_k = min(record.fingerprint_fields["top_k"], len(names))
    labels = [scores.of(class_id, name) for class_id, name in enumerate(names)]
    return Thresholds(scores.n_images, top_k, len(names), labels)


class _Scores:
    """The scores of each of K labels, counted: `counts` [K, bins]."""

    def __init__(self, n_classes: int) -> None:
        self.counts = np.zeros((n_classes, _N_BINS), np.int64)
        self.lowest = np.full(n_classes, np.inf, np.float32)
        self.highest = np.full(n_classes, -np.inf, np.float32)
        self.n_images = 0

    def add(self, top_k: pa.ListArray) -> None:
        """Count a batch's. Raises ValueError for what no run has written."""
        self.n_images += len(top_k) - top_k.null_count
        entries = top_k.flatten()
        class_ids = entries.field("class_id").to_numpy(zero_copy_only=False)
        scores = entries.field("probability").to_numpy(zero_copy_only=False)
        if not len(scores):
            return
        if class_ids.min() < 0 or class_ids.max() >= len(self.counts):
            raise ValueError("a class_id is not one of the model's")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("a probability is not between 0 and 1")
        np.add.at(self.counts, (class_ids, _bins(scores)), 1)
        np.minimum.at(self.lowest, class_ids, scores)
        np.maximum.at(self.highest, class_ids, scores)

    def of(self, class_id: int, label: str) -> LabelScores:
        counts = self.counts[class_id]
        if not counts.any():
            return LabelScores(class_id, label, counts, None, None, (), None, None, "no scores")
        lowest, highest = float(self.lowest[class_id]), float(self.highest[class_id])
        places = np.searchsorted(np.cumsum(counts), np.array(QUANTILES) * counts.sum())
        at = np.clip(_sigmoid(_CENTRES[places]), lowest, highest)
        edge, why = find_cut(counts)
        cut = None if edge is None else float(_sigmoid(EDGES[edge]))
        n_above = None if edge is None else int(counts[edge:].sum())
        quantiles = tuple(at.tolist())
        return LabelScores(class_id, label, counts, lowest, highest, quantiles, cut, n_above, why)


def find_cut(counts: NDArray[np.int64]) -> tuple[int | None, str]:
    """Counts by logit [bins] -> the edge between two groups of scores, or None, and why there is
    none.

    Minimum error thresholding (Kittler and Illingworth 1986, Pattern Recognition 19(1)): of all
    edges the one at which two normal distributions, each with a spread and a share of its own, fit
    what lies on its sides best. Unlike Otsu's threshold it does not want groups of a size: a label
    is true of few photos. A single group can be cut in two as well, so the two must fit better than
    one normal distribution does (by the Bayesian information criterion), and there must be a valley
    between them, half as deep as the lower peak at least, and deeper than chance makes one.
    """
    n = int(counts.sum())
    if n < 2 * _SMALLEST_GROUP:
        return None, f"too few scores, {2 * _SMALLEST_GROUP} at least"
    # What lies below and above each edge, but for the outermost: how many, their mean and spread.
    below, above = _moments(counts), _moments(counts[::-1], _CENTRES[::-1])
    n_low, mean_low, spread_low = (each[:-1] for each in below)
    n_high, mean_high, spread_high = (each[:-1][::-1] for each in above)
    is_possible = (n_low >= _SMALLEST_GROUP) & (n_high >= _SMALLEST_GROUP)
    if not is_possible.any():
        return None, "one group"
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = n_low / n, n_high / n
        fit = low * np.log(spread_low / low) + high * np.log(spread_high / high)
    fit = np.where(is_possible, fit, np.inf)
    best = np.flatnonzero(fit <= fit.min() + 1e-9)  # all edges of a gap are as good as each other
    at = int(best[len(best) // 2])
    gain = 2 * n * (np.log(below[2][-1]) - fit[at])
    if gain <= 3 * np.log(n):  # a mean, a spread and a share more
        return None, "one group"
    if not _has_valley(counts, at + 1, mean_high[at] - mean_low[at]):
        return None, "one group"
    return at + 1, ""


def _moments(
    counts: NDArray[np.int64], at: NDArray[np.float64] = _CENTRES
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Number, mean and standard deviation of what lies in the first bin, the first two ..."""
    n = np.cumsum(counts).astype(np.float64)
    some = np.maximum(n, 1)
    mean = np.cumsum(counts * at) / some
    variance = np.cumsum(counts * at**2) / some - mean**2
    return n, mean, np.sqrt(np.maximum(variance, _LEAST_SPREAD**2))


def _has_valley(counts: NDArray[np.int64], edge: int, distance: float) -> bool:
    """Whether fewer scores lie around an edge than around some place on each side of it, in windows
    of a quarter of the `distance` between the groups.
    """
    half = max(1, round(distance / 8 / _WIDTH))
    total = np.concatenate([[0], np.cumsum(counts)])
    edges = np.arange(_N_BINS + 1)
    windows = total[np.minimum(edges + half, _N_BINS)] - total[np.maximum(edges - half, 0)]
    valley = int(windows[edge])
    peaks = [windows[: max(1, edge - 2 * half)].max(), windows[edge + 2 * half :].max(initial=0)]
    peak = int(min(peaks))
    return 2 * valley <= peak and peak - valley >= 2 * np.sqrt(peak + valley)


def _bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    with np.errstate(divide="ignore"):  # of 0 and 1: the outermost bins
        logits = np.log(scores.astype(np.float64)) - np.log1p(-scores.astype(np.float64))
    inside = np.clip(logits, _LOWEST, _HIGHEST)
    return np.minimum((inside - _LOWEST) / _WIDTH, _N_BINS - 1).astype(np.int64)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits))
