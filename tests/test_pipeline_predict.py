"""Placement choices and predictions."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipeline.console import Console
from pipeline.errors import LabelImagesError, UsageError
from pipeline.label.local import predict_batches
from pipeline.label.placement import COMPILE_FROM_IMAGES, Placement, choose_placement
from pipeline.label.predict import Predictor, Running, _Clock, score_features
from pipeline.load.batch import Batch
from pipeline.settings import ErrorBudget, Settings
from tests.helpers import Command, rows
from vit.classifier import Classifier, load_classifier
from vit.head import Head
from vit.preprocess import normalise

REASONS = dict.fromkeys(("device", "precision", "compile", "batch_size", "workers"), "test")

CONSOLE = Console()


def placement(precision: str = "fp32", compile: bool = False, batch_size: int = 8) -> Placement:
    return Placement(torch.device("cpu"), precision, compile, batch_size, 0, REASONS)


def batch(n: int = 5) -> Batch:
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Batch(0, list(range(n)), images, [], [], 0.0, 0.0)


@pytest.fixture
def classifier(small_model: Path) -> Classifier:
    return load_classifier(str(small_model))


def test_predictions_are_the_softmax_s_largest(classifier: Classifier) -> None:
    images = batch()
    predictions = Predictor(classifier, placement(), 3, CONSOLE)(images)
    logits = classifier.model(normalise(images.images, classifier.preprocess))
    probabilities = torch.softmax(logits, dim=-1).numpy()
    assert predictions.class_ids.dtype == np.int32
    assert predictions.probabilities.dtype == np.float32
    order = np.argsort(-probabilities, axis=1)[:, :3]
    assert (predictions.class_ids == order).all()
    assert (
        np.abs(predictions.probabilities - np.take_along_axis(probabilities, order, 1)).max() < 1e-6
    )
    assert predictions.is_finite.all()


def test_an_image_s_prediction_does_not_depend_on_its_batch(classifier: Classifier) -> None:
    predict, images = Predictor(classifier, placement(), 10, CONSOLE), batch(6)
    together = predict(images)
    for row in range(6):
        alone = predict(Batch(0, [row], images.images[row : row + 1], [], [], 0.0, 0.0))
        assert (alone.class_ids[0] == together.class_ids[row]).all()
        assert np.abs(alone.probabilities[0] - together.probabilities[row]).max() < 1e-5


SCORED_IN_ANY_BATCH = """
from dataclasses import replace
from types import SimpleNamespace
import torch
from pipeline.label.predict import best_classes, score_features
from vit.head import Head

def elsewhere(tensor):
    # A copy whose first byte lies differently, as that of another process may.
    room = torch.empty(tensor.numel() + 1)
    return room[1:].copy_(tensor.flatten()).view(tensor.shape)

torch.set_num_threads(2)
torch.manual_seed(0)
sizes = ((4, 64), (5, 64), (10, 192), (37, 384), (64, 100), (200, 768), (1000, 192), (999, 100))
for n_classes, n_features in sizes:
    for activation in ("softmax", "sigmoid"):
        weight = torch.randn(n_classes, n_features) / 20
        head = Head(weight, torch.randn(n_classes), n_classes % 2 == 0, activation)
        features = torch.randn(150, n_features)
        features[17, 3] = torch.inf
        ids, scores, is_finite = best_classes(head, features, 4)
        assert is_finite.logical_not().nonzero().tolist() == [[17]]
        order = torch.randperm(150)
        order = order[order != 17]
        parts = features[order].split([1, 4, 7, 8, 29, 100])
        other = replace(head, weight=elsewhere(weight))
        same = map(torch.cat, zip(*(best_classes(other, part, 4) for part in parts), strict=True))
        same_ids, same_scores, also_finite = same
        assert torch.equal(same_ids, ids[order]), head
        assert torch.equal(same_scores, scores[order]), head
        assert also_finite.all()
        kept = features[order].repeat(9, 1).numpy()
        again = score_features(SimpleNamespace(head=head), torch.device("cpu"), 4, kept)
        assert (again.class_ids == ids[order].repeat(9, 1).numpy()).all(), head
        assert (again.probabilities == scores[order].repeat(9, 1).numpy()).all(), head
        assert torch.get_num_threads() == 2
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch computes without MKL")
@pytest.mark.parametrize("instructions", ["", "AVX2"])
def test_a_score_is_the_same_to_the_bit_in_any_batch(instructions: str) -> None:
    """MKL computes with what the CPU has; told AVX2, with nothing newer."""
    mkl = {"MKL_ENABLE_INSTRUCTIONS": instructions} if instructions else {}
    command = [sys.executable, "-c", SCORED_IN_ANY_BATCH]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, **mkl})


def test_kept_features_are_scored_by_several_threads(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, really_scores = set(), Head.scores

    def scores(head: Head, features: torch.Tensor) -> torch.Tensor:
        together.wait(timeout=20)
        threads.add(threading.get_ident())
        return really_scores(head, features)

    cpu, n_features = torch.device("cpu"), classifier.head.n_features
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    together = threading.Barrier(2)
    monkeypatch.setattr(Head, "scores", scores)
    try:
        features = np.ones((30, n_features), np.float32)
        found = score_features(classifier, cpu, 3, features)
        assert (len(threads), found.class_ids.shape) == (2, (30, 3))
        together = threading.Barrier(1)
        assert score_features(classifier, cpu, 3, features[:0]).class_ids.shape == (0, 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_top_k_is_never_more_than_the_classes_and_an_empty_batch_is_fine(
    classifier: Classifier,
) -> None:
    predict = Predictor(classifier, placement(), 50, CONSOLE)
    assert predict(batch(2)).class_ids.shape == (2, 10)
    empty = predict(batch(0))
    assert (empty.class_ids.shape, empty.probabilities.shape, empty.is_finite.shape) == (
        (0, 10),
        (0, 10),
        (0,),
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_full(small_model: Path, precision: str) -> None:
    images = batch(16)
    full = Predictor(load_classifier(str(small_model)), placement(), 10, CONSOLE)(images)
    half = Predictor(load_classifier(str(small_model)), placement(precision), 10, CONSOLE)(images)
    by_class = [
        np.take_along_axis(p.probabilities, np.argsort(p.class_ids, 1), 1) for p in (full, half)
    ]
    assert np.abs(by_class[0] - by_class[1]).max() < 0.05
    assert half.probabilities.dtype == np.float32
    assert half.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5), "softmax in float32"


def test_the_head_computes_in_float32_whatever_the_backbone_does(classifier: Classifier) -> None:
    images = batch(16)
    inputs = normalise(images.images, classifier.preprocess, torch.bfloat16)
    with torch.inference_mode():
        features = classifier.backbone.on(torch.device("cpu"), torch.bfloat16)(inputs)
        assert features.dtype == torch.bfloat16
        expected = classifier.scores(features).sort(dim=-1, descending=True)
    predictions = Predictor(classifier, placement("bf16"), 10, CONSOLE)(images)
    assert (predictions.probabilities == expected.values.numpy()).all()
    assert (predictions.class_ids == expected.indices.numpy()).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicting_leaves_the_classifier_as_it_was(classifier: Classifier, precision: str) -> None:
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    predict = Predictor(classifier, placement(precision), 3, CONSOLE)
    predict(batch())
    after = classifier.model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    is_shared = predict.backbone.model is classifier.model
    assert is_shared == (precision == "fp32"), "no copy is made where none is needed"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_marked(
    classifier: Classifier, value: float, activation: Literal["softmax", "sigmoid"]
) -> None:
    head = replace(classifier.head, weight=classifier.head.weight.abs(), activation=activation)
    classifier = replace(classifier, head=head)
    predict, images = Predictor(classifier, placement(), 3, CONSOLE), batch(3)

    def spoil(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[1] = value
        return output

    predict.backbone.register_forward_hook(spoil)
    assert predict(images).is_finite.tolist() == [True, False, True]


def test_a_short_batch_is_filled_up_where_the_model_is_compiled(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def compile(model: torch.nn.Module) -> torch.nn.Module:
        model.register_forward_hook(
            lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
        )
        return model

    monkeypatch.setattr(torch, "compile", compile)
    plain = Predictor(classifier, placement(), 3, CONSOLE)
    filled = Predictor(classifier, placement(compile=True), 3, CONSOLE)
    for n in (8, 5):
        images = batch(n)
        assert np.abs(plain(images).probabilities - filled(images).probabilities).max() < 1e-5
    assert shapes[-1] == (8, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_really_compiled_predictions_are_the_same(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Of one block: the next is compiled as it was, in as many seconds again. The first backend
    traces the network as the other does, and runs what it traced; the other makes C++ of it, in half
    a minute.
    """
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    traced = []
    compile = partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", lambda model: traced.append(model) or compile(model))
    del classifier.model.blocks[1:]
    plain, compiled = (
        Predictor(classifier, placement(), 3, CONSOLE),
        Predictor(classifier, placement(compile=True), 3, CONSOLE),
    )
    for n in (8, 3):
        images = batch(n)
        assert np.abs(plain(images).probabilities - compiled(images).probabilities).max() < 1e-5
    assert len(traced) == 1


class SmallGpu(torch.nn.Module):
    """At the device border: a model on a device that holds no more than `room` images at once."""

    def __init__(self, model: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.model(images)


def test_out_of_memory_halves_the_batch_and_goes_on(
    classifier: Classifier, said: list[str]
) -> None:
    images = batch(8)
    expected = Predictor(classifier, placement(), 3, CONSOLE)(images)
    predict = Predictor(classifier, placement(), 3, CONSOLE)
    predict.backbone = SmallGpu(predict.backbone, room=3)
    for _ in range(2):
        predictions = predict(images)
        assert (predictions.class_ids == expected.class_ids).all()
        assert np.abs(predictions.probabilities - expected.probabilities).max() < 1e-5
    assert predict.limit == 2
    assert said == [f"cpu ran out of memory: {n} images at a time from here on" for n in (4, 2)]


def test_a_gpu_without_room_for_one_image_is_an_error(classifier: Classifier) -> None:
    predict = Predictor(classifier, placement(), 3, CONSOLE)
    predict.backbone = SmallGpu(predict.backbone, room=0)
    with pytest.raises(
        LabelImagesError, match="not enough memory for one image: CUDA out of memory"
    ):
        predict(batch(8))


class FailingGpu(torch.nn.Module):
    """At the device border: the error torch raises where a GPU's kernel failed."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
        )


def test_a_gpu_that_fails_half_way_is_told_and_costs_no_finished_shard(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = tmp_path / "l.parquet", tmp_path / "whole.parquet"
    arguments = ("--model", small_model, "--shard-size", 4, "--workers", 0)
    start = Predictor.start

    def fail_later(self: Predictor, batch: Batch) -> Running:
        if batch.indices[0] >= 4:
            self.backbone, self.placement = (
                FailingGpu(),
                replace(self.placement, device=torch.device("cuda")),
            )
            batch = replace(batch, images=_OnGpu(batch.images))
        return start(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "start", fail_later)
        patch.setattr("pipeline.label.predict._Clock", lambda device: _Clock(torch.device("cpu")))
        ran = command(photos, "--out", out, *arguments)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(
        "label-images: cuda failed: CUDA error: unspecified launch failure; finished shards are "
        "kept"
    )
    assert "4 of 10 images done" in command("status", out).stdout
    assert "going on: 4 of 10" in command(photos, "--out", out, *arguments).stderr
    assert command(photos, "--out", whole, *arguments).returncode == 0
    assert rows(out) == rows(whole)


class _OnGpu(torch.Tensor):
    """A tensor whose moving to a GPU works on a machine without one."""

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_cpu_without_memory_is_told(classifier: Classifier) -> None:
    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50)  # the real allocator's own error

    predict = Predictor(classifier, placement(), 3, CONSOLE)
    predict.backbone = forward
    with pytest.raises(
        LabelImagesError, match=r"not enough memory for the model: .* smaller --batch-size"
    ):
        predict(batch(4))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_batches_stay_in_order_with_their_own_predictions(
    classifier: Classifier, ahead: int
) -> None:
    predict = Predictor(classifier, placement(), 3, CONSOLE)
    predict.batches_ahead = ahead
    batches = [batch(n) for n in (4, 0, 8, 1)]
    results = list(predict_batches(predict, iter(batches)))
    assert [given for given, _ in results] == batches
    for given, predictions in results:
        assert np.abs(predictions.probabilities - predict(given).probabilities).sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu(small_model: Path) -> None:
    images = batch(16)
    full = Predictor(load_classifier(str(small_model)), placement(), 10, CONSOLE)(images)
    on_gpu = Placement(torch.device("cuda"), "fp32", False, 16, 0, REASONS)
    there = Predictor(load_classifier(str(small_model)), on_gpu, 10, CONSOLE)(images)
    assert (full.class_ids[:, 0] == there.class_ids[:, 0]).mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu_on_the_way_of_a_long_run(small_model: Path) -> None:
    """In bf16 and compiled, from pinned memory, a batch always ahead; the last one is short."""
    batches = [batch(n) for n in (16, 16, 16, 16, 5)]
    full = Predictor(load_classifier(str(small_model)), placement(), 10, CONSOLE)
    chosen = Placement(torch.device("cuda"), "bf16", True, 16, 0, REASONS)
    there = Predictor(load_classifier(str(small_model)), chosen, 10, CONSOLE)
    assert there.batches_ahead == 1, "two are in flight"
    pinned = [each.pin_memory() for each in batches]
    assert all(each.images.is_pinned() for each in pinned)
    results = list(predict_batches(there, iter(pinned)))
    assert len(results) == len(batches)
    for given, (after, predictions) in zip(batches, results, strict=True):
        assert torch.equal(given.images, after.images)
        assert predictions.is_finite.all()
        here, in_order = full(given), np.argsort(predictions.class_ids, axis=1)
        expected = np.take_along_axis(here.probabilities, np.argsort(here.class_ids, axis=1), 1)
        got = np.take_along_axis(predictions.probabilities, in_order, 1)
        assert np.abs(got - expected).max() < 0.05
        assert (here.class_ids[:, 0] == predictions.class_ids[:, 0]).mean() > 0.7


# The device border: what a machine has is faked, the choices made from it are real.


def fake_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Fake GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


@pytest.mark.parametrize(
    ("capability", "precision"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")]
)
def test_a_gpu_is_chosen_with_the_precision_it_has(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    fake_gpu(monkeypatch, capability)
    chosen = choose_placement(Settings(), COMPILE_FROM_IMAGES)
    assert (chosen.device.type, chosen.precision, chosen.compile, chosen.batch_size) == (
        "cuda",
        precision,
        True,
        256,
    )
    assert chosen.reasons["device"] == "Fake GPU"
    assert not choose_placement(Settings(), COMPILE_FROM_IMAGES - 1).compile
    with pytest.raises(UsageError, match="there are 2 GPUs"):
        choose_placement(Settings(device="cuda:2"), 1)


@pytest.mark.parametrize(
    ("capabilities", "precision", "reason"),
    [
        ({"avx512_bf16": True}, "bf16", "this CPU has AVX512-BF16"),
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "this CPU has AMX"),
        ({}, "fp32", "this CPU has no bf16 instructions"),
    ],
)
def test_a_cpu_s_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    chosen = choose_placement(Settings(device="cpu"), 10)
    assert (chosen.precision, chosen.reasons["precision"]) == (precision, reason)
    assert chosen.compile is False


def test_what_is_asked_for_is_done_or_refused() -> None:
    chosen = choose_placement(
        Settings(device="cpu", precision="bf16", compile=True, batch_size=3, workers=0), 10
    )
    assert (chosen.precision, chosen.compile, chosen.batch_size, chosen.workers) == (
        "bf16",
        True,
        3,
        0,
    )
    assert chosen.reasons.pop("runtime") == "--compile"
    assert set(chosen.reasons.values()) == {"asked for"}
    with pytest.raises(UsageError, match="is not a device"):
        choose_placement(Settings(device="toaster"), 1)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch finds no such device here"):
            choose_placement(Settings(device="cuda"), 1)


@pytest.mark.parametrize(
    ("text", "failed", "found", "exceeded"),
    [
        ("5%", 5, 100, False),
        ("5%", 6, 100, True),
        ("0", 0, 9, False),
        ("0", 1, 9, True),
        ("2", 2, 3, False),
        ("0.5%", 1, 199, True),
    ],
)
def test_an_error_budget_is_a_count_or_a_rate(
    text: str, failed: int, found: int, exceeded: bool
) -> None:
    assert ErrorBudget.parse(text).is_exceeded(failed, found) is exceeded
    assert str(ErrorBudget.parse(text)) == text


@pytest.mark.parametrize("text", ["", "-1", "five", "1.5", "%"])
def test_an_error_budget_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="neither a count"):
        ErrorBudget.parse(text)


def test_settings_fit_into_json() -> None:
    record: dict[str, Any] = Settings(paths=(Path("a"),), out=Path("b")).to_record()
    assert json.loads(json.dumps(record))["max_errors"] == "5%"
