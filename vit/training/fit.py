"""Features of some examples and their classes -> a Head, by logistic regression.

The regression is scikit-learn's (extra `fit`), on features of length 1 that are centred and scaled
as a whole. Its strength and the head's temperature come from cross-validation: of each example,
what a regression says that never saw it. Centre, scale and temperature end in one linear map.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit.errors import ModelError
from vit.head import Head

from .evaluate import accuracy, calibration_error_of

MIN_EXAMPLES = 5  # of each class: fewer leave nothing to learn from beside what is to be judged
_FOLDS = 5
# scikit-learn's C, the inverse of how strongly weights are held back, for features of variance 1.
_STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(-8, 5))  # 1e-4 to 1e2

# From there on it only gets worse, and takes longer: weak regressions need many more steps.
_WORSE_IN_A_ROW = 3


@dataclass(frozen=True)
class Fitted:
    """A head, and how good it is on examples that were left out of making it.

    `scores` [N, K] are those of each example by the regression of the fold that it was left out of,
    calibrated with the head's temperature: so `accuracy` and `calibration_error` are of examples
    that were not seen, but for the choice of C and temperature, which all of them made together.
    """

    head: Head
    folds: int
    strength: float  # scikit-learn's C
    scores: Tensor
    accuracy: float
    calibration_error: float


def check_installed() -> None:
    """Raise ModelError where scikit-learn is missing."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sklearn":
            raise  # an installation that is broken
        raise ModelError(
            "fitting needs scikit-learn, which is not installed: pip install 'label-images[fit]'"
        ) from error


def fit_head(features: Tensor, targets: Tensor) -> Fitted:
    """Fit a head to features [N, F] and class ids [N] of 0 to K-1, each at least twice.

    The same features give the same head. Raises ModelError where scikit-learn is missing.
    """
    check_installed()
    x = F.normalize(features.double(), dim=-1).numpy()  # [N, F]
    y = targets.numpy()
    counts = np.bincount(y)
    assert len(counts) >= 2
    assert counts.min() >= 2
    folds = int(min(_FOLDS, counts.min()))
    split = list(_split(x, y, folds))
    best: tuple[float, float, float, Tensor] | None = None
    n_worse = 0
    for strength in _STRENGTHS:
        logits = _left_out(x, y, split, strength)  # [N, K]
        # As it will be used: a C that holds weights back is not passed over for want of confidence.
        temperature, loss = _calibrated(logits, targets)
        if best is None or loss < best[0]:
            best, n_worse = (loss, strength, temperature, logits), 0
        elif (n_worse := n_worse + 1) == _WORSE_IN_A_ROW:
            break
    assert best
    _, strength, temperature, logits = best
    weight, bias = _regression(x, y, strength)
    head = Head(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias).float(),
        normalise=True,
        temperature=temperature,
    )
    return Fitted(
        head,
        folds,
        strength,
        (logits / temperature).softmax(dim=-1),
        accuracy(logits, targets),
        calibration_error_of(logits, targets, temperature),
    )


def _calibrated(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The temperature that makes the true classes likeliest, to four digits, and the loss with it.

    As if of one example more the class were chosen at random: where all are right, no temperature
    would be low enough otherwise, and each score be 1.
    """
    smoothing = 1 / (len(targets) + 1)

    def loss(exponent: float) -> float:
        scaled = logits / 10**exponent
        return F.cross_entropy(scaled, targets, label_smoothing=smoothing).item()

    # The loss is convex in 1/temperature, so it has one lowest place: thirds without it are cut off.
    low, high = -4.0, 3.0
    while high - low > 1e-4:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, two) if loss(one) < loss(two) else (one, high)
    temperature = float(f"{10 ** ((low + high) / 2):.4g}")
    return temperature, loss(math.log10(temperature))


def _split(x: NDArray[Any], y: NDArray[Any], folds: int) -> Iterator[tuple[Any, Any]]:
    """Each fold's rows to fit and rows left out; in every fold as much of each class as may be."""
    from sklearn.model_selection import StratifiedKFold

    return iter(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y))


def _left_out(x: NDArray[Any], y: NDArray[Any], split: list[Any], strength: float) -> Tensor:
    """Logits [N, K] of each row by the regression that never saw it."""
    logits = np.empty((len(y), y.max() + 1))
    for fitted, left_out in split:
        weight, bias = _regression(x[fitted], y[fitted], strength)
        logits[left_out] = x[left_out] @ weight.T + bias
    return torch.from_numpy(logits)


def _regression(
    x: NDArray[Any], y: NDArray[Any], strength: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight [K, F] and bias [K] of a multinomial logistic regression, for x [N, F] as it is."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    centre = x.mean(axis=0)  # [F]
    # One scale for all: that of each feature by itself is noise where examples are few.
    scale = (x - centre).std() or 1.0
    regression = LogisticRegression(C=strength, max_iter=1000)
    with warnings.catch_warnings():
        # What it has by then is judged by the examples it has not seen, like all others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit((x - centre) / scale, y)
    weight, bias = regression.coef_ / scale, regression.intercept_
    if len(weight) == 1:  # of two classes scikit-learn has one map, the second's logit
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias - weight @ centre
