"""A head that was made apart from its backbone's weights: joined, in a bundle, and in a table."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import LabelImagesError
from pipeline.label.identity import identify
from tests.helpers import Command, forbid, rows
from vit.backbone import load_backbone
from vit.checkpoints.bundle import write_bundle
from vit.checkpoints.weights import sha256_file
from vit.classifier import Classifier, load_classifier, with_head
from vit.errors import ModelError
from vit.head import Head

Make = Callable[..., Path]


def a_head(seed: int, n_classes: int = 3, **fields: Any) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_classes, 48, generator=generator)
    return Head(weight, torch.randn(n_classes, generator=generator), **fields)


@pytest.fixture
def make(small_model: Path, tmp_path: Path) -> Make:
    """Write a bundle of the small model's backbone and a head of its own."""

    def write(name: str, head: Head, labels: tuple[str, ...] = ("a", "b", "c")) -> Path:
        made = with_head(load_backbone(str(small_model)), head, labels, name=name)
        write_bundle(made.spec, made.model.state_dict(), tmp_path / name, made.own_head)
        return tmp_path / name

    return write


def config_of(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "config.json").read_text()))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_backbone_and_a_head_are_a_classifier_and_come_back_from_a_bundle(
    small_model: Path, make: Make, normalise: bool, activation: Any
) -> None:
    head = a_head(1, normalise=normalise, activation=activation, temperature=0.7)
    backbone = load_backbone(str(small_model))
    joined = with_head(backbone, head, ("a", "b", "c"))
    loaded = load_classifier(str(make("own", head)))
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = head.scores(backbone.backbone(images))
        for classifier in (joined, loaded):
            assert torch.equal(classifier.scores(classifier.backbone(images)), expected)
    assert (loaded.name, loaded.labels) == ("own", ("a", "b", "c"))
    assert loaded.own_head is not None
    assert loaded.own_head.sha256 == head.sha256
    assert loaded.spec == replace(joined.spec, name="own")
    assert load_classifier(str(small_model)).own_head is None


def test_head_and_labels_must_fit_the_backbone(small_model: Path) -> None:
    backbone = load_backbone(str(small_model))
    with pytest.raises(ModelError, match="predicts 3 classes but 2 class names"):
        with_head(backbone, a_head(1), ("a", "b"))
    with pytest.raises(ModelError, match="a head for 47 features and a backbone that gives 48"):
        with_head(backbone, Head(torch.randn(3, 47), torch.randn(3)), ("a", "b", "c"))


def test_two_heads_of_one_backbone_have_its_features_and_labels_of_their_own(make: Make) -> None:
    """The backbone's file is the same to the byte, whatever head, however many classes."""
    first = make("first", a_head(1))
    others = [
        make("second", a_head(2)),
        make("more", a_head(3, n_classes=5), tuple("abcde")),
        make("normalised", a_head(1, normalise=True)),
        make("sigmoid", a_head(1, activation="sigmoid")),
        make("warm", a_head(1, temperature=2.0)),
    ]
    one = identify(load_classifier(str(first)), 3).fingerprint
    assert one.weights_sha256 == sha256_file(first / "model.safetensors")
    assert not one.architecture["n_classes"]
    found = [identify(load_classifier(str(bundle)), 3).fingerprint for bundle in others]
    assert {each.features_digest for each in found} == {one.features_digest}
    assert {sha256_file(bundle / "model.safetensors") for bundle in others} == {one.weights_sha256}
    assert len({each.digest for each in [one, *found]}) == 6
    assert len({each.head_digest for each in [one, *found]}) == 6
    assert [each.differences(one)[0].split(" (")[0] for each in found] == [
        "the head", "the class names", "the head", "activation", "temperature",
    ]  # fmt: skip


def test_the_digest_of_a_head_is_of_its_numbers_and_shape() -> None:
    head = a_head(1)
    assert head.sha256 == a_head(1, temperature=3.0, activation="sigmoid").sha256
    strided = replace(head, weight=head.weight.T.contiguous().T)
    assert strided.sha256 == head.sha256
    changed = head.weight.clone()
    changed[2, 47] += 1e-3
    others = [
        replace(head, weight=changed),
        replace(head, bias=head.bias + 1),
        replace(head, normalise=True),
        Head(head.weight.reshape(3, 48)[:, :47].contiguous(), head.bias),
    ]
    assert len({each.sha256 for each in [head, *others]}) == 5


def test_bundles_with_the_head_inside_stay_as_they_were(small_model: Path) -> None:
    """Their fingerprint, too: another one would make every table's rows stale."""
    assert sorted(path.name for path in small_model.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert config_of(small_model).keys() == {
        "label_images_bundle", "name", "architecture", "preprocess", "temperature", "classes",
    }  # fmt: skip
    assert config_of(small_model)["label_images_bundle"] == 1
    for name in (str(small_model), "embedded"):
        fingerprint = identify(load_classifier(name), 5).fingerprint
        assert fingerprint.to_record().keys() == {
            "weights_sha256", "architecture", "preprocess", "temperature", "labels_sha256", "top_k",
            "decode_rules",
        }  # fmt: skip
        assert fingerprint.architecture["n_classes"] > 0


def test_one_file_cannot_hold_both(make: Make, small_model: Path, command: Command) -> None:
    ran = command("models", "convert", make("own", a_head(1)), "--out", small_model / "x.safetensors")  # fmt: skip
    assert ran.returncode == 2
    assert "a head of its own needs a second; choose a folder" in ran.stderr
    assert not (small_model / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalise": 1}, r"normalise 1 \(true or false\)"),
        ({"normalise": None}, r"normalise None \(true or false\)"),
        ({"classes": [{"label": "a"}]}, "predicts 3 classes but 1 class names"),
        ({"classes": []}, "names no classes; name them with --labels"),
        ({"activation": "relu"}, "'relu'; choose one of softmax, sigmoid"),
        ({"temperature": 0}, "temperature 0.0; it must be above 0"),
        ({"label_images_bundle": 2}, "has format 2 and says normalise"),
        ({"label_images_bundle": 5}, "has format 5, this version reads 1 to 4"),
    ],
)
def test_a_config_that_lies_is_refused(make: Make, change: dict[str, Any], message: str) -> None:
    bundle = make("own", a_head(1))
    (bundle / "config.json").write_text(json.dumps(config_of(bundle) | change))
    with pytest.raises(ModelError, match=message):
        load_classifier(str(bundle))


def test_an_architecture_with_classes_beside_a_head_of_its_own_is_refused(make: Make) -> None:
    bundle = make("own", a_head(1))
    config = config_of(bundle)
    config["architecture"]["n_classes"] = 3
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"an architecture of 3 classes \(0\)"):
        load_classifier(str(bundle))
    for key in ("normalise", "activation"):
        left_out = config_of(make("own", a_head(1)))
        del left_out[key]
        (bundle / "config.json").write_text(json.dumps(left_out))
        with pytest.raises(ModelError, match=f"incomplete or damaged .KeyError: '{key}'"):
            load_classifier(str(bundle))


def test_a_head_s_file_that_lies_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make("own", a_head(1))
    path = bundle / "head.safetensors"
    tensors = load_file(path)
    for changed, message in (
        ({"weight": tensors["weight"]}, "should hold weight and bias, and holds weight"),
        ({**tensors, "scale": tensors["bias"].clone()}, "and holds bias, scale, weight"),
        ({**tensors, "bias": tensors["bias"][:2]}, r"and \[2\]"),
        ({**tensors, "weight": tensors["weight"].half()}, "computes in float32"),
        ({**tensors, "weight": tensors["weight"][:, :40].contiguous()}, "a head for 40 features"),
    ):
        save_file(changed, path)
        with pytest.raises(ModelError, match=message):
            load_classifier(str(bundle))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"head.safetensors is damaged: .*; fetch or write it"):
        load_classifier(str(bundle))
    with monkeypatch.context() as patch:
        forbid(patch, "head.safetensors")
        with pytest.raises(ModelError, match="permission"):
            load_classifier(str(bundle))
    path.unlink()
    with pytest.raises(ModelError, match=r"has no head.safetensors; copy the bundle's folder"):
        load_classifier(str(bundle))


def test_a_folder_is_labelled_verified_gone_on_with_and_labelled_anew_for_another_head(
    make: Make, photos: Path, command: Command, tmp_path: Path
) -> None:
    out, beside = tmp_path / "labels.parquet", tmp_path / "embeddings"
    own = make("own", a_head(1, normalise=True, temperature=0.8))
    run = (photos, "--out", out, "--embeddings", beside, "--model")
    ran = command(*run, own)
    assert ran.returncode == 0, ran.stderr
    assert "audit: " in ran.stderr
    classifier = load_classifier(str(own))
    assert {row["label"] for row in rows(out)} <= {"a", "b", "c"}
    by_path = {row["path"]: row for row in pq.read_table(beside).to_pylist()}
    for row in rows(out):
        features = torch.tensor([by_path[row["path"]]["embedding"]])
        expected = classifier.scores(features)[0].max().item()
        assert row["probability"] == pytest.approx(expected, abs=1e-5)
    record = json.loads(pq.read_metadata(out).metadata[b"label_images"])
    assert record["fingerprint_fields"]["head_sha256"] == classifier.head.sha256
    assert command("verify", out).returncode == 0
    assert "no image decoded" in command(*run, own).stdout
    ran = command("plan", *run, make("other", a_head(2, normalise=True, temperature=0.8)))
    assert "the head (was" in ran.stdout + ran.stderr
    ran = command(*run, tmp_path / "other")
    assert ran.returncode == 0, ran.stderr
    assert command("verify", out).returncode == 0
    assert {row["model"] for row in rows(out)} == {"other"}
    again = {row["path"]: row["embedding"] for row in pq.read_table(beside).to_pylist()}
    assert again == {path: row["embedding"] for path, row in by_path.items()}


def test_a_job_is_not_gone_on_with_by_another_head(
    make: Make, photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends before its table is gone on with by its own head, and by no other."""
    out = tmp_path / "labels.parquet"
    own, other = make("own", a_head(1)), make("other", a_head(2))
    with monkeypatch.context() as patch:

        def fails(*_: Any) -> None:
            raise LabelImagesError("stopped here")

        patch.setattr("pipeline.run.merge", fails)
        assert "stopped here" in command(photos, "--out", out, "--model", own).stderr
    ran = command(photos, "--out", out, "--model", own)
    assert ran.returncode == 0, ran.stderr
    assert "going on: 10 of 10 images are done already" in ran.stderr
    first = rows(out)
    assert command(photos, "--out", out, "--model", other).returncode == 0
    assert [row["fingerprint"] for row in rows(out)] != [row["fingerprint"] for row in first]


def test_it_is_shown_listed_looked_through_and_converted(
    make: Make, photos: Path, command: Command, tmp_path: Path
) -> None:
    own = make("own", a_head(1, normalise=True))
    shown = command("models", "show", own)
    assert shown.returncode == 0, shown.stderr
    digest = load_classifier(str(own)).head.sha256
    assert (
        f"head           of its own: features of length 1 [48] -> [3], sha256 {digest}"
        in shown.stdout
    )
    assert command("models", "show", own, "--classes").stdout == "0\ta\n1\tb\n2\tc\n"
    seen = command(photos / "0000.jpg", "--model", own)
    assert seen.returncode == 0, seen.stderr
    assert "%  a" in seen.stdout
    ran = command("models", "convert", own, "--out", tmp_path / "copy")
    assert ran.returncode == 0, ran.stderr
    for name in ("model.safetensors", "head.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (own / name).read_bytes()
    before, after = (identify(load_classifier(str(tmp_path / name)), 3) for name in ("own", "copy"))
    assert before.fingerprint == after.fingerprint


def test_its_files_may_change_under_no_run(
    make: Make, photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = make("own", a_head(1)), make("other", a_head(2))
    from pipeline.label import local

    really = local.label_shards

    def changes(*arguments: Any) -> Any:
        stages = really(*arguments)
        shutil.copy(other / "head.safetensors", own / "head.safetensors")
        return stages

    monkeypatch.setattr(local, "label_shards", changes)
    ran = command(photos, "--out", tmp_path / "l.parquet", "--model", own)
    assert "the model's files changed while the run was at work" in ran.stderr
    assert ran.returncode != 0


def test_a_classifier_s_spec_says_which_kind_it_is(make: Make, small_model: Path) -> None:
    inside: Classifier = load_classifier(str(small_model))
    assert inside.spec.normalise is None
    assert load_classifier(str(make("own", a_head(1)))).spec.normalise is False
