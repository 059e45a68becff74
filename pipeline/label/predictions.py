"""Predictions: what a model said of some images. Without torch: a cluster's driver has none."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """The k best classes of each image, best first: `class_ids` int32 [B, k], `probabilities`
    float32 [B, k].

    `is_finite` [B] is False where the model gave no numbers; such rows mean nothing. `features`
    float32 [B, F] are None where nobody asked for them.
    """

    class_ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    is_finite: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None
    transfer_s: float = 0.0  # time on the device, for moving the images there
    model_s: float = 0.0  # and for everything after: backbone, head and top-k


NO_PREDICTIONS = Predictions(
    np.empty((0, 1), np.int32), np.empty((0, 1), np.float32), np.empty(0, np.bool_)
)
