"""Classifier and its configs: what fits together is loaded, what does not is refused with advice."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import timm.data
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers import ViTConfig as TheirConfig

from tests.helpers import ROOT, forbid, largest_difference, peaked_, photo
from tests.test_end_to_end import without_root_rights
from vit.backbone import architecture_of
from vit.checkpoints.bundle import ModelSpec, imagenet_labels, read_labels, write_bundle
from vit.classifier import load_classifier
from vit.config import ViTConfig
from vit.errors import ModelError
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, fit_image, normalise
from vit.summary import summarise

CONFIG = ViTConfig(img_size=32, patch_size=8, n_classes=4, embed_dim=48, depth=2, n_heads=3)
SPEC = ModelSpec(
    CONFIG, Preprocess(32, 36), ("a", "b", "c", "d"), ("n1", "n2", "n3", "n4"), 0.8, "tiny"
)


def bundle(out: Path, spec: ModelSpec = SPEC, config: ViTConfig = CONFIG) -> str:
    model = VisionTransformer(config)
    peaked_(model)
    write_bundle(spec, model.state_dict(), out)
    return str(out)


def test_the_embedded_model_works_and_is_named_for_what_it_is() -> None:
    classifier = load_classifier()
    assert classifier.name.startswith("tiny-imagenet-200")
    assert len(classifier.labels) == len(set(classifier.labels)) == 200
    assert (classifier.labels[0], classifier.label_ids[0]) == ("goldfish", "n01443537")
    assert all(len(id_) == 9 and id_[0] == "n" for id_ in classifier.label_ids)
    assert not classifier.model.training
    images = normalise(fit_image(photo(1), classifier.preprocess)[None], classifier.preprocess)
    scores = classifier.scores(classifier.backbone(images))
    assert scores.shape == (1, 200)
    assert scores.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_bundle_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    classifier = load_classifier(bundle(tmp_path / name))
    assert classifier.spec == SPEC
    assert len(classifier.weights_sha256) == 64
    again = load_classifier(str(tmp_path / name), labels=_file(tmp_path, "w\nx\ny\nz\n"))
    assert (again.labels, again.label_ids) == (("w", "x", "y", "z"), ())
    assert again.labels_sha256 != classifier.labels_sha256


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_bundle_may_be_read_by_whom_the_umask_allows(
    tmp_path: Path, name: str, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        bundle(tmp_path / name)
        assert os.umask(umask) == umask, "writing leaves it as it was"
    finally:
        os.umask(before)
    files = list((tmp_path / name).iterdir()) if name == "folder" else [tmp_path / name]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}


@pytest.mark.parametrize("forbidden", ["model.safetensors", "config.json", "labels.txt"])
def test_what_may_not_be_read_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    name, labels = bundle(tmp_path / "bundle"), _file(tmp_path, "w\nx\ny\nz\n")
    forbid(monkeypatch, forbidden)
    with pytest.raises(
        ModelError, match=rf"{forbidden} may not be read by this user .* chmod a\+r /.*{forbidden}"
    ):
        load_classifier(name, labels)


def test_a_single_file_that_may_not_be_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bundle(tmp_path / "file.safetensors")
    forbid(monkeypatch, "file.safetensors")
    with pytest.raises(ModelError, match=r"file\.safetensors may not be read by this user"):
        load_classifier(name)


def test_a_folder_that_may_not_be_entered_says_so(tmp_path: Path) -> None:
    (tmp_path / "closed" / "bundle").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    script = (
        "import sys\nfrom vit.errors import ModelError\nfrom vit.checkpoints.locate import find_source\n"
        "try:\n    find_source(sys.argv[1])\nexcept ModelError as error:\n    print(error)"
    )
    for name in ("closed", "closed/bundle"):
        command = [*without_root_rights(), sys.executable, "-c", script, str(tmp_path / name)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "may not be read by this user (permission denied)" in ran.stdout, (
            ran.stdout + ran.stderr
        )
    (tmp_path / "closed").chmod(0o755)


def test_a_timm_folder_is_read_as_it_is(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    peaked_(theirs, 0.2)
    save_for_hf(theirs, str(tmp_path), model_config={"label_names": ["cat", "dog", "emu"]})
    ours = load_classifier(str(tmp_path))
    assert ours.labels == ("cat", "dog", "emu")
    assert ours.preprocess == Preprocess(224, 248, "crop", "bicubic")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image = photo(5, 400, 300)
    with torch.inference_mode():
        expected = theirs(transform(image)[None])
        logits = ours.model(normalise(fit_image(image, ours.preprocess)[None], ours.preprocess))
    assert largest_difference(logits, expected) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize(
    "arguments", [{"img_size": 160}, {"patch_size": 32}, {"qkv_bias": False}, {"in_chans": 1}]
)
def test_a_timm_model_with_other_arguments(tmp_path: Path, arguments: dict[str, object]) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments).eval()
    save_for_hf(
        theirs,
        str(tmp_path),
        model_config={"label_names": list("abc"), "model_args": arguments},
        safe_serialization=True,
    )
    size = theirs.patch_embed.img_size[0]
    images = torch.randn(2, theirs.patch_embed.proj.in_channels, size, size)
    with torch.inference_mode():
        assert (
            largest_difference(load_classifier(str(tmp_path)).model(images), theirs(images)) < 1e-5
        )


def test_label_descriptions_are_the_labels_and_names_the_ids(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    save_for_hf(theirs, str(tmp_path), model_config={
        "label_names": ["n01", "n02"], "label_descriptions": {"n01": "tench", "n02": "goldfish"}})  # fmt: skip
    ours = load_classifier(str(tmp_path))
    assert (ours.labels, ours.label_ids) == (("tench", "goldfish"), ("n01", "n02"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"global_pool": "avg"}}, "says global_pool='token', and .* has 'avg'"),
        ({"model_args": {"init_values": 1e-5}}, r"no blocks\.0\.ls1\.gamma"),
        ({"architecture": "vit_so400m_patch14_224"}, "unknown architecture"),
        (
            {"pretrained_cfg": {"input_size": [3, 224, 224], "crop_mode": "stretch"}},
            "crop_mode 'stretch'",
        ),
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, "only square"),
        ({"pretrained_cfg": {}}, "incomplete or damaged"),
    ],
)
def test_a_timm_model_this_network_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=2), str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        load_classifier(str(tmp_path), _file(tmp_path, "a\nb\n"))


def test_a_transformers_folder_is_read_as_it_is(tmp_path: Path) -> None:
    config = TheirConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
                         image_size=64, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})  # fmt: skip
    theirs, processor = (
        ViTForImageClassification(config).eval(),
        ViTImageProcessor(size={"height": 64, "width": 64}),
    )
    peaked_(theirs)
    theirs.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ours = load_classifier(str(tmp_path))
    assert ours.labels == ("cat", "dog")
    assert ours.preprocess == Preprocess(64, 64, "squash", "bilinear")
    image = photo(5, 90, 70)
    with torch.inference_mode():
        expected = theirs(**processor(image, return_tensors="pt")).logits
        logits = ours.model(normalise(fit_image(image, ours.preprocess)[None], ours.preprocess))
    assert largest_difference(logits, expected) < 0.02 * float(expected.abs().max())


def test_a_distilled_transformers_folder(tmp_path: Path) -> None:
    config = DeiTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
    )
    theirs = DeiTForImageClassificationWithTeacher(config).eval()
    theirs.save_pretrained(tmp_path)
    size = {"height": 64, "width": 64}
    DeiTImageProcessor(size={"height": 72, "width": 72}, crop_size=size).save_pretrained(tmp_path)
    ours = load_classifier(str(tmp_path))
    assert ours.model.config.distilled
    assert (ours.preprocess.fit, ours.preprocess.resize_size, ours.preprocess.crop_size) == (
        "squash",
        72,
        64,
    )
    assert ours.labels == ("LABEL_0", "LABEL_1")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert largest_difference(ours.model(images), theirs(images).logits) < 1e-5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, labels=("a", "b"), label_ids=()), "predicts 4 classes but 2 class names"),
        (replace(SPEC, preprocess=Preprocess(32, 36, mean=(0.5,), std=(0.5,))), "3 channels but its preprocessing"),
        (replace(SPEC, preprocess=Preprocess(64, 72)), "images of 32 pixels but its preprocessing makes them 64"),
        (replace(SPEC, config=replace(CONFIG, img_size=64), preprocess=Preprocess(64, 72)), "pos_embed .* resample"),
        (replace(SPEC, config=replace(CONFIG, n_classes=5), labels=tuple("abcde"), label_ids=()), "head.weight of"),
        (replace(SPEC, temperature=0.0), "bundle: a head has temperature 0.0; it must be above 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, spec: ModelSpec, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_classifier(bundle(tmp_path / "bundle", spec))


def test_two_channels_are_no_photo(tmp_path: Path) -> None:
    config = replace(CONFIG, in_chans=2)
    spec = replace(
        SPEC, config=config, preprocess=Preprocess(32, 36, mean=(0.5, 0.5), std=(0.5, 0.5))
    )
    with pytest.raises(ModelError, match="grey, RGB, RGBA"):
        load_classifier(bundle(tmp_path / "bundle", spec, config))


def test_arch_and_preprocess_are_for_bare_checkpoints_only(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave out --arch"):
        load_classifier("embedded", arch="vit_tiny_patch16_224")


def test_a_head_of_unknown_classes_needs_labels(tmp_path: Path) -> None:
    torch.save(
        timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict(), tmp_path / "five.pth"
    )
    with pytest.raises(ModelError, match=r"5 classes and no names .* --labels classes\.txt"):
        load_classifier(str(tmp_path / "five.pth"))
    with pytest.raises(ModelError, match="5 classes but 3 class names"):
        load_classifier(str(tmp_path / "five.pth"), _file(tmp_path, "a\nb\nc\n"))


def test_a_single_output_is_no_class(tmp_path: Path) -> None:
    torch.save(
        timm.create_model("vit_tiny_patch16_224", num_classes=1).state_dict(), tmp_path / "one.pth"
    )
    with pytest.raises(ModelError, match="a single output"):
        load_classifier(str(tmp_path / "one.pth"), _file(tmp_path, "cat\n"))


def test_a_1000_class_head_has_the_imagenet_names(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "imagenet.pth")
    labels = load_classifier(str(tmp_path / "imagenet.pth")).labels
    assert labels == imagenet_labels()
    assert (labels[0], labels[1], labels[281], labels[999]) == (
        "tench",
        "goldfish",
        "tabby",
        "toilet tissue",
    )


@pytest.mark.parametrize(
    "what", ["truncated json", "truncated weights", "other version", "no weights", "no config"]
)
def test_a_damaged_bundle_says_what_is_wrong(tmp_path: Path, what: str) -> None:
    name = bundle(tmp_path / "bundle")
    config, weights = tmp_path / "bundle" / "config.json", tmp_path / "bundle" / "model.safetensors"
    message = {
        "truncated json": "cannot be read as JSON",
        "truncated weights": "damaged or not a checkpoint",
        "other version": "this version reads 1",
        "no weights": "has no model.safetensors",
        "no config": "has no config.json",
    }[what]
    if what == "truncated json":
        config.write_text(config.read_text()[:100])
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "other version":
        config.write_text(
            config.read_text().replace('"label_images_bundle": 1', '"label_images_bundle": 9')
        )
    else:
        (weights if what == "no weights" else config).unlink()
    with pytest.raises(ModelError, match=message):
        load_classifier(name)


@pytest.mark.parametrize("part", ["architecture", "preprocess"])
def test_a_key_of_a_bundle_that_nobody_knows_is_refused(tmp_path: Path, part: str) -> None:
    name = bundle(tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    config[part]["register_tokens"] = 4
    (tmp_path / "bundle" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"incomplete or damaged .*'register_tokens'"):
        load_classifier(name)


def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    name = bundle(tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "head.weight": torch.zeros(4, 47)}, weights)
    with pytest.raises(ModelError, match=r"head\.weight of shape \[4, 47\] instead of \[4, 48\]"):
        load_classifier(name)


@pytest.mark.parametrize(
    ("file_name", "text", "expected"),
    [
        ("c.txt", "cat\ndog\n", ("cat", "dog")),
        ("c.txt", "\ufeffcat\r\ndog\r\n\r\n", ("cat", "dog")),
        ("c.json", '["cat", "dog"]', ("cat", "dog")),
        ("c.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
    ],
)
def test_class_names_in_any_usual_form(
    tmp_path: Path, file_name: str, text: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / file_name).write_bytes(text.encode())
    assert read_labels(tmp_path / file_name) == expected


@pytest.mark.parametrize(
    ("file_name", "text", "message"),
    [
        ("c.txt", "cat\n\ndog\n", "class 2 of 3 has no name"),
        ("c.json", '{"0": "cat", "2": "dog"}', "keys 0 to N-1"),
        ("c.json", "{", "not a JSON list"),
        ("c.json", "[1]", "class 1 of 1 has no name"),
    ],
)
def test_class_names_that_cannot_be_are_refused(
    tmp_path: Path, file_name: str, text: str, message: str
) -> None:
    (tmp_path / file_name).write_text(text)
    with pytest.raises(ModelError, match=message):
        read_labels(tmp_path / file_name)
    with pytest.raises(ModelError, match="cannot be read"):
        read_labels(tmp_path / "missing.txt")


def test_the_summary_lists_layers_with_shapes_and_parameters() -> None:
    layers = {layer.name: layer for layer in summarise(CONFIG, batch_size=2)}
    assert layers["(whole)"].output_shape == (2, 4)
    assert layers["patch_embed"].output_shape == (2, 16, 48)
    assert layers["blocks.1.attn.qkv"].output_shape == (2, 17, 144)
    assert layers["blocks.1.attn.qkv"].n_parameters == 48 * 144 + 144
    assert layers["pos_embed"].n_parameters == 17 * 48
    parameters = sum(parameter.numel() for parameter in VisionTransformer(CONFIG).parameters())
    assert layers["(whole)"].n_parameters == parameters


def _file(folder: Path, text: str) -> Path:
    path = folder / "labels.txt"
    path.write_text(text)
    return path


def test_the_architecture_in_a_fingerprint_has_the_fields_it_always_had() -> None:
    """A field more, or one less, would make every row of every table stale. One that comes has to be
    left out where it has its default.
    """
    assert set(architecture_of(CONFIG)) == {
        "img_size", "patch_size", "in_chans", "n_classes", "embed_dim", "depth", "n_heads",
        "mlp_ratio", "qkv_bias", "distilled", "norm_eps",
    }  # fmt: skip
