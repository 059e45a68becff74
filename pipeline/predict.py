"""Batch -> Predictions: normalise, run the model, softmax, top-k.

Where and in which precision the model runs is chosen in engine.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.classifier import Classifier
from vit.preprocess import normalise

from .engine import Engine
from .loader import Batch


@dataclass(frozen=True)
class Predictions:
    """The k best classes of each image, best first: `class_ids` int32 [B, k], `probabilities` float32 [B, k].

    `is_finite` [B] is False where the model gave no numbers; such rows mean nothing.
    """

    class_ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    is_finite: NDArray[np.bool_]


class Predictor:
    """The model on its device, in its precision."""

    def __init__(self, classifier: Classifier, engine: Engine, top_k: int) -> None:
        self.classifier = classifier
        self.engine = engine
        self.top_k = min(top_k, len(classifier.labels))
        # Weights in the precision itself rather than autocast: nothing is cast again in each batch.
        self.model: Any = classifier.model.to(engine.device, engine.dtype)
        if engine.compile:
            self.model = torch.compile(self.model)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Predictions:
        n = len(batch.images)
        if not n:
            empty = np.empty((0, self.top_k))
            return Predictions(empty.astype(np.int32), empty.astype(np.float32), np.empty(0, np.bool_))
        images = batch.images.to(self.engine.device, non_blocking=True)  # uint8 [B, C, H, W]
        images = normalise(images, self.classifier.preprocess, self.engine.dtype)
        if self.engine.compile and n < self.engine.batch_size:
            # One shape, one compilation: a short batch is filled up, and the filling cut off again.
            images = torch.cat([images, images.new_zeros(self.engine.batch_size - n, *images.shape[1:])])
        logits: Tensor = self.model(images)[:n]  # [B, K]
        # Softmax in float32: bfloat16 has 8 bits, too few to tell probabilities apart.
        probabilities = self.classifier.probabilities(logits)  # [B, K]
        best, class_ids = probabilities.topk(self.top_k, dim=-1)  # [B, k]
        is_finite = probabilities.isfinite().all(dim=-1)  # [B]
        return Predictions(class_ids.to(torch.int32).cpu().numpy(), best.cpu().numpy(), is_finite.cpu().numpy())
