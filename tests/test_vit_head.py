"""The head: one linear map in float32, whatever it was made from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import largest_difference, peaked_
from vit.classifier import load_classifier
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.head import Head
from vit.model import VisionTransformer

SMALL = ViTConfig(img_size=32, patch_size=8, n_classes=5, embed_dim=48, depth=2, n_heads=3)


def head(**fields: Any) -> Head:
    return Head(**{"weight": torch.randn(5, 48), "bias": torch.randn(5), **fields})


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_model_s_head_gives_the_model_s_probabilities(
    distilled: bool, temperature: float
) -> None:
    model = VisionTransformer(SMALL, distilled=distilled).eval()
    peaked_(model)
    own = Head.of(model, temperature)
    assert (own.n_classes, own.n_features) == (5, 96 if distilled else 48)
    with torch.inference_mode():
        images = torch.randn(3, 3, 32, 32)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        expected = torch.softmax(model(images) / temperature, dim=-1)
        scores = own.scores(features)
        # A distilled model's two maps are one here, whose sums are rounded once more or less.
        assert largest_difference(scores, expected) <= (1e-6 if distilled else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_computed_in_float32(dtype: torch.dtype) -> None:
    own, features = head(), torch.randn(7, 48, dtype=dtype)
    expected = torch.softmax(features.float() @ own.weight.T + own.bias, dim=-1)
    scores = own.scores(features)
    assert scores.dtype == torch.float32
    assert largest_difference(scores, expected) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own.scores(features), scores)


def test_normalised_features_have_length_one_and_sigmoids_stand_alone() -> None:
    own, features = head(normalise=True, activation="sigmoid", temperature=0.5), torch.randn(7, 48)
    unit = features / features.norm(dim=-1, keepdim=True)
    expected = torch.sigmoid((unit @ own.weight.T + own.bias) / 0.5)
    assert largest_difference(own.scores(features), expected) < 1e-6
    assert largest_difference(own.scores(features * 9), expected) < 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": torch.zeros(48)}, r"not \[48\] and \[5\]"),
        ({"bias": torch.zeros(4)}, r"not \[5, 48\] and \[4\]"),
        ({"weight": torch.zeros(0, 48), "bias": torch.zeros(0)}, r"not \[0, 48\] and \[0\]"),
        ({"weight": torch.zeros(5, 48).half()}, "computes in float32, and .* torch.float16"),
        ({"bias": torch.zeros(5, device="meta")}, "weight is on cpu and its bias on meta"),
        ({"activation": "relu"}, "'relu'; choose one of softmax, sigmoid"),
        ({"temperature": 0.0}, "temperature 0.0; it must be above 0"),
        ({"temperature": float("nan")}, "temperature nan; it must be above 0, and finite"),
        ({"temperature": float("inf")}, "temperature inf"),
    ],
)
def test_what_is_no_head_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        head(**fields)


def test_a_head_must_fit_the_backbone_and_the_labels(small_model: Path) -> None:
    classifier = load_classifier(str(small_model))
    weight = classifier.head.weight  # [K, F]
    with pytest.raises(ModelError, match=r"a head for \d+ features and a backbone that gives"):
        replace(classifier, head=replace(classifier.head, weight=weight[:, 1:]))
    with pytest.raises(ModelError, match="predicts 9 classes but 10 class names"):
        replace(classifier, head=Head(weight[1:], classifier.head.bias[1:]))


def test_a_classifier_s_head_takes_no_memory_of_its_own() -> None:
    classifier = load_classifier()
    assert classifier.head.weight.data_ptr() == classifier.model.head.weight.data_ptr()
    assert classifier.temperature == classifier.head.temperature == classifier.spec.temperature
