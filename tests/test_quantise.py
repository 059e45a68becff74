"""`models quantize`: an int8 bundle, how it runs, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.console import Console
from pipeline.errors import UsageError
from pipeline.label import quantise as quantising
from pipeline.label.graph import make_graph, openvino
from pipeline.label.placement import choose_placement
from pipeline.label.quantise import _agreement, quantise
from pipeline.label.runtime import Work, backbone_graph
from pipeline.settings import Settings
from tests.helpers import Command, make_photos, photo, rows
from vit.backbone import load_backbone
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.classifier import load_classifier
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess

pytest.importorskip("nncf")

N_PHOTOS = 48


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in folders named as two of the small model's classes, which are right by chance alone."""
    folder = tmp_path_factory.mktemp("calibration")
    for seed in range(N_PHOTOS):
        place = folder / f"class {seed % 2}"
        place.mkdir(exist_ok=True)
        photo(seed).save(place / f"{seed}.jpg")
    return folder


# What exporting and calibrating the small model gave, for those who break a later step.
_made: dict[str, Any] = {}


@pytest.fixture
def bundle(
    command: Command,
    small_model: Path,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The small model in int8, made once."""
    out = tmp_path_factory.getbasetemp() / "small-int8"
    if not out.exists():
        with monkeypatch.context() as patch:
            for name in ("export", "calibrated"):
                patch.setattr(quantising, name, _keeping(name))
            ran = command("models", "quantize", small_model, "--calibrate", photos, "--out", out)
        assert ran.returncode == 0, ran.stderr
        assert "24 photos that calibrated nothing" in ran.stdout
        assert "accuracy on 24 photos in folders named as classes" in ran.stdout
    return out


def _keeping(name: str) -> Callable[..., Any]:
    really = getattr(quantising, name)

    def make(*arguments: Any, **more: Any) -> Any:
        _made[name] = really(*arguments, **more)
        return _made[name]

    return make


@pytest.fixture
def calibrated(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who quantises the small model again takes what came of exporting and calibrating it then,
    which are most of the time.
    """
    for name in ("export", "calibrated"):
        monkeypatch.setattr(quantising, name, lambda *_, kept=_made[name], **__: kept)


def changed(bundle: Path, tmp_path: Path, **config: Any) -> Path:
    """A copy of a bundle whose config says something else."""
    copy = tmp_path / "changed"
    shutil.copytree(bundle, copy)
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**said, **config}))
    return copy


@pytest.mark.slow
def test_the_bundle_labels_nearly_as_its_float_self(
    bundle: Path, command: Command, small_model: Path, tmp_path: Path
) -> None:
    report = json.loads((bundle / "quantised.json").read_text())
    assert report["same_best"] >= 0.8
    assert report["mean_difference"] < 0.1
    assert report["source_sha256"] == load_classifier(str(small_model)).weights_sha256
    assert f"{report['same_best']:.1%}" in (bundle / "README.md").read_text()
    # Attention is written out, and all of it quantised.
    assert "ScaledDotProductAttention" not in (bundle / "int8.xml").read_text()
    assert 'type="SoftMax"' in (bundle / "int8.xml").read_text()
    new = make_photos(tmp_path / "new", 20)
    tables = {}
    for name, model in (("int8", bundle), ("float", small_model)):
        out = tmp_path / f"{name}.parquet"
        ran = command(new, "--model", model, "--out", out, "--audit", 20)
        assert ran.returncode == 0, ran.stderr
        tables[name] = rows(out)
        if name == "int8":
            assert "int8 (the model is quantised)" in ran.stderr
            assert "audit: 20 rows" in ran.stderr
    pairs = list(zip(tables["int8"], tables["float"], strict=True))
    same = sum(a["top_k"][0]["class_id"] == b["top_k"][0]["class_id"] for a, b in pairs)
    assert same >= 16
    assert all(a["fingerprint"] != b["fingerprint"] for a, b in pairs)
    # It is int8 that ran: some probability differs by more than float32 can.
    assert max(abs(a["probability"] - b["probability"]) for a, b in pairs) > 1e-5


@pytest.mark.slow
def test_an_image_s_label_depends_on_none_of_its_neighbours(bundle: Path) -> None:
    graph = make_graph(load_classifier(str(bundle)), "int8", 4)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    features = graph(images)
    others = images.clone()
    others[[0, 1, 3]] = 255 - others[[0, 1, 3]]
    assert torch.equal(graph(others)[2], features[2])
    assert not torch.equal(graph(others)[1], features[1])


@pytest.mark.slow
def test_what_a_quantised_model_cannot_do_is_refused(
    bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_photos(tmp_path / "new", 2)
    for wrong, said in (
        (["--precision", "fp32"], "in fp32"),
        (["--runtime", "torch"], "by torch"),
        (["--compile"], "compiled by torch"),
    ):
        ran = command(new, "--model", bundle, "--out", tmp_path / "t.parquet", *wrong)
        assert (ran.returncode, said in ran.stderr) == (2, True), ran.stderr
    cuda = (torch.device("cuda"), "a GPU")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.label.placement.choose_device", lambda _: cuda)
        with pytest.raises(UsageError, match="quantised to int8, for CPUs, and cannot run on cuda"):
            choose_placement(Settings(), 10, "int8")
    ran = command("models", "convert", bundle, "--out", tmp_path / "again")
    assert (ran.returncode, "stays the bundle that it is" in ran.stderr) == (2, True)
    with pytest.raises(ModelError, match="take the model that it was made of"):
        load_backbone(str(bundle))
    with pytest.raises(UsageError, match="quantised already"):
        quantise(load_classifier(str(bundle)), new, Console())


@pytest.mark.slow
def test_a_bundle_that_is_not_whole_or_says_too_little_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    other = changed(bundle, tmp_path)
    graph = other / "int8.bin"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ModelError, match=r"int8\.bin is damaged or of another model"):
        load_classifier(str(other))
    graph.unlink()
    with pytest.raises(ModelError, match=r"quantised, and its int8\.bin is missing"):
        load_classifier(str(other))
    shutil.rmtree(other)
    said = json.loads((bundle / "config.json").read_text())
    for config, message in (
        ({"quantised": {**said["quantised"], "precision": "int4"}}, "to 'int4', .* knows int8"),
        ({"quantised": {**said["quantised"], "off": 2.0}}, r"2\.0 off, and this version"),
        ({"label_images_bundle": 1}, "only one of format 4 may"),
    ):
        with pytest.raises(ModelError, match=message):
            load_classifier(str(changed(bundle, tmp_path, **{**said, **config})))
        shutil.rmtree(tmp_path / "changed")


@pytest.mark.slow
def test_a_machine_that_computes_otherwise_is_refused(bundle: Path, tmp_path: Path) -> None:
    # As if on the machine that made it the graph had been nearer to the float network.
    said = json.loads((bundle / "config.json").read_text())["quantised"]
    other = changed(bundle, tmp_path, quantised={**said, "off": 0.0})
    classifier = load_classifier(str(other))
    with torch.no_grad():
        classifier.model.norm.bias.add_(1.0)
    placement = choose_placement(Settings(device="cpu"), 10, classifier.precision)
    with pytest.raises(UsageError, match=r"OpenVINO alone can run: .* of their length off"):
        backbone_graph(classifier, placement, Work(10), Console())


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_a_model_that_does_not_bear_it_is_refused(
    small_model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.label.quantise.how_far_off", lambda *_: 0.6)
    with pytest.raises(UsageError, match=r"does not bear quantising: .* 0\.6 of their length off"):
        quantise(load_classifier(str(small_model)), photos, Console())


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_a_full_disk_leaves_nothing(
    command: Command,
    small_model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")  # what OpenVINO makes of it

    monkeypatch.setattr(openvino(), "save_model", fail)
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "out"
    ran = command("models", "quantize", small_model, "--calibrate", photos, "--out", out)
    assert (ran.returncode, "is the disk full?" in ran.stderr) == (2, True)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {"class_token": False, "pool": "map", "mlp": "gelu_tanh"},
        {"rope": "eva02", "mlp": "swiglu", "pool": "avg", "reg_tokens": 2},
    ],
    ids=["SigLIP", "EVA-02"],
)
def test_other_families_quantise(network: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # One block: the next would be quantised as it was.
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "n_heads": 3}
    config = ViTConfig(**{**small, "n_classes": 10, **network})
    names = tuple(f"class {n}" for n in range(10))
    spec = ModelSpec(config, Preprocess(32, 36), names, (), 1.0, "other")
    write_bundle(spec, VisionTransformer(config).state_dict(), tmp_path / "other")
    made = quantise(load_classifier(str(tmp_path / "other")), photos, Console())
    assert made.agreement.photos == made.calibrated_on == N_PHOTOS // 2
    assert made.agreement.mean_difference < 0.1


@pytest.mark.parametrize("n", [0, 39])
def test_too_few_photos_are_refused(
    n: int, command: Command, small_model: Path, tmp_path: Path
) -> None:
    few, out = make_photos(tmp_path / "few", n), tmp_path / "out"
    ran = command("models", "quantize", small_model, "--calibrate", few, "--out", out)
    assert (ran.returncode, out.exists()) == (2, False)
    assert f"has {n} photos that can be used, and calibrating takes at least 40" in ran.stderr


def test_what_lies_at_out_is_never_replaced(
    command: Command, small_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    ran = command(
        "models", "quantize", small_model, "--calibrate", tmp_path, "--out", tmp_path / "mine"
    )
    assert (ran.returncode, "exists already" in ran.stderr) == (2, True)


def test_agreement_is_counted_as_it_says() -> None:
    theirs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    ours = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    found = _agreement(ours, theirs, torch.tensor([0, 1, -1]))
    assert (found.photos, found.labelled_photos) == (3, 2)
    assert found.same_best == pytest.approx(2 / 3)
    assert found.mean_difference == pytest.approx(0.1)
    assert found.largest_difference == pytest.approx(0.2)
    assert (found.accuracy, found.accuracy_in_float) == (0.5, 1.0)
