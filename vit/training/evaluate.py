"""How good a classifier is, and whether its probabilities mean what they say.

Works on logits [N, K] and true classes [N]; `predict_logits` makes the former. Training fits the
temperature with this; benchmarks judge tables with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise

from .labelled_images import LabelledImages


@torch.inference_mode()
def predict_logits(
    model: VisionTransformer, data: LabelledImages, preprocess: Preprocess, batch_size: int = 500
) -> Tensor:
    """Predict every image in fp32 on the model's device: logits float32 [N, K], on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    batches = data.images.split(batch_size)
    return torch.cat(
        [model(normalise(batch.to(device), preprocess)).float().cpu() for batch in batches]
    )


def accuracy(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of images whose true class is among the k best."""
    return (logits.topk(k).indices == targets[:, None]).any(dim=1).float().mean().item()


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, section 2): |accuracy - confidence| over equal
    bins, by size.

    `confidence` [N] are the best classes' probabilities, `right` [N] whether they are true.
    """
    bin_of = (confidence * bins).long().clamp(max=bins - 1)  # [N]
    gap = torch.zeros(bins, dtype=torch.float64).index_add(
        0, bin_of, right.double() - confidence.double()
    )
    return (gap.abs().sum() / len(confidence)).item()


def calibration_error_of(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """The calibration error of softmax(logits / temperature)."""
    confidence, best = (logits / temperature).softmax(dim=-1).max(dim=-1)
    return calibration_error(confidence, best == targets)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Find the temperature, 0.25 to 4 in hundredths, that makes the true classes likeliest (Guo et
    al., 4.2).
    """
    candidates = [hundredths / 100 for hundredths in range(25, 401)]
    return min(
        candidates, key=lambda temperature: F.cross_entropy(logits / temperature, targets).item()
    )


def judge(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Fit the temperature on every other image and measure: accuracies on all, calibration on the
    images in between.

    Likelihood and calibration are not the same, nor are the two halves: where the fitted
    temperature makes the calibration of the images in between worse, `temperature` is 1 (of two
    errors measured on the same images the smaller one is a little flattering). What was fitted and
    what it did stay in `fitted_temperature` and `fitted_calibration_error`.
    """
    fitted = fit_temperature(logits[::2], targets[::2])
    raw_error = calibration_error_of(logits[1::2], targets[1::2], 1.0)
    fitted_error = calibration_error_of(logits[1::2], targets[1::2], fitted)
    return {
        "top1": accuracy(logits, targets),
        "top5": accuracy(logits, targets, k=min(5, logits.shape[1])),
        "temperature": fitted if fitted_error <= raw_error else 1.0,
        "raw_calibration_error": raw_error,
        "calibration_error": min(fitted_error, raw_error),
        "fitted_temperature": fitted,
        "fitted_calibration_error": fitted_error,
    }
