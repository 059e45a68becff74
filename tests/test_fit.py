"""`models fit`: classes of one's own from a folder of examples, by a head on a backbone as it is."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.helpers import Command, rows
from vit.backbone import load_backbone
from vit.classifier import load_classifier
from vit.errors import ModelError
from vit.training.evaluate import calibration_error

COLOURS = {"brick": (170, 70, 50), "grass": (60, 150, 60), "water": (50, 90, 180)}


def texture(label: str, seed: int) -> Image.Image:
    """A made-up photo of a class: its colour, more or less, with a pattern over it."""
    generator = np.random.default_rng([seed, *label.encode()])
    y, x = np.mgrid[0:40, 0:48]
    wave = np.sin(x * generator.uniform(0.2, 0.9) + y * generator.uniform(0.2, 0.9))
    colour = np.array(COLOURS[label]) + generator.normal(0, 25, 3)
    pixels = colour + 30 * wave[..., None] + generator.normal(0, 12, (40, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def textures(folder: Path, n: int, first: int = 0, labels: tuple[str, ...] = (*COLOURS,)) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for seed in range(first, first + n):
            texture(label, seed).save(folder / label / f"{seed:03}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return textures(tmp_path / "examples", 12)


def fit(command: Command, small_model: Path, folder: Path, out: Path, code: int = 0) -> Any:
    if code == 0:
        pytest.importorskip("sklearn")
    ran = command("models", "fit", folder, "--model", small_model, "--out", out)
    assert ran.returncode == code, ran.stderr
    return ran


def test_a_folder_of_examples_becomes_a_model_that_labels(
    small_model: Path, folder: Path, command: Command, tmp_path: Path
) -> None:
    out, table = tmp_path / "mine", tmp_path / "labels.parquet"
    said = fit(command, small_model, folder, out).stdout
    assert said.startswith("3 classes, 36 photos (12 to 12 a class), 48 features each\n")
    assert "(5 folds" not in said
    assert " of 36 photos, 5 folds), calibration error " in said
    assert said.endswith(f"{out}: label with it by --model {out}\n")
    fresh = textures(tmp_path / "fresh", 10, first=100)
    ran = command(fresh, "--out", table, "--model", out)
    assert ran.returncode == 0, ran.stderr
    right = [row["label"] == row["path"].split("/")[0] for row in rows(table)]
    assert sum(right) / len(right) > 0.9
    assert {row["model"] for row in rows(table)} == {"mine"}
    assert command("verify", table).returncode == 0
    report = json.loads((out / "fit.json").read_text())
    assert report["examples"] == {"brick": 12, "grass": 12, "water": 12}
    card = (out / "README.md").read_text()
    for word in ("# mine", "3 classes", "36 example photos", report["date"], "small", "| grass | 12 |"):  # fmt: skip
        assert word in card
    assert f"{report['accuracy']:.2%}" in card
    expected = load_backbone(str(small_model)).model.state_dict()
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_the_same_folder_gives_the_same_model(
    small_model: Path, folder: Path, command: Command, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        fit(command, small_model, folder, tmp_path / name)
    for name in ("model.safetensors", "head.safetensors"):
        one, two = ((tmp_path / which / name).read_bytes() for which in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_head_is_scikit_learn_s_regression_with_all_folded_in(n_classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    from vit.training.fit import fit_head

    centres = torch.randn(n_classes, 20)
    targets = torch.arange(90) % n_classes
    features = 7 * (centres[targets] + 1.5 * torch.randn(90, 20)) + 3
    fitted = fit_head(features, targets)
    x = torch.nn.functional.normalize(features.double(), dim=-1).numpy()
    x = (x - x.mean(axis=0)) / (x - x.mean(axis=0)).std()
    theirs = linear_model.LogisticRegression(C=fitted.strength, max_iter=1000).fit(x, targets)
    expected = torch.from_numpy(theirs.predict_log_proba(x)) / fitted.head.temperature
    ours = fitted.head.scores(features)
    assert torch.allclose(ours.double(), expected.softmax(dim=-1), atol=1e-4)
    assert fitted.folds == 5
    assert fitted.scores.shape == (90, n_classes)
    right = (fitted.scores.argmax(dim=1) == targets).double().mean().item()
    assert fitted.accuracy == pytest.approx(right)


def test_scores_mean_what_they_say_and_are_never_certain() -> None:
    pytest.importorskip("sklearn")
    from vit.training.fit import fit_head

    centres, generator = torch.randn(4, 30), torch.Generator().manual_seed(1)
    targets = torch.arange(400) % 4
    features = centres[targets] + 1.5 * torch.randn(400, 30, generator=generator)
    new = centres[targets] + 1.5 * torch.randn(400, 30, generator=generator)
    head = fit_head(features, targets).head
    confidence, best = head.scores(new).max(dim=1)
    assert calibration_error(confidence, best == targets) < 0.06
    apart = torch.eye(4)[targets] + 0.01 * torch.randn(400, 4, generator=generator)
    fitted = fit_head(apart, targets)
    assert fitted.accuracy == 1
    assert 0.99 < fitted.scores.max(dim=1).values.min() < fitted.scores.max() < 0.9999


def test_features_that_say_nothing_give_a_head_that_says_nothing() -> None:
    pytest.importorskip("sklearn")
    from vit.training.fit import fit_head

    fitted = fit_head(torch.ones(20, 8), torch.arange(20) % 2)
    assert torch.allclose(fitted.head.scores(torch.ones(1, 8)), torch.full((1, 2), 0.5), atol=1e-3)


def test_a_photo_in_the_wrong_folder_is_doubted_and_pairs_are_named(
    small_model: Path, folder: Path, command: Command, tmp_path: Path
) -> None:
    texture("water", 50).save(folder / "brick" / "odd.png")
    said = fit(command, small_model, folder, tmp_path / "mine").stdout
    assert "most often confused\n" in said
    assert "brick and water" in said
    doubts = said.split("doubted: ")[1].splitlines()
    assert any(line.startswith("  brick/odd.png: water ") for line in doubts)


def test_what_cannot_be_used_is_named_and_left_out(
    small_model: Path, folder: Path, command: Command, tmp_path: Path
) -> None:
    (folder / "brick" / "broken.jpg").write_bytes(b"no photo")
    texture("grass", 0).save(folder / "beside.png")
    (folder / "grass" / "again.png").write_bytes((folder / "grass" / "000.png").read_bytes())
    (folder / "water" / "both.png").write_bytes((folder / "brick" / "003.png").read_bytes())
    (folder / ".cache").mkdir()
    (folder / "list.txt").write_text("no photo, and no example")
    (folder / "water" / "deeper").mkdir()
    texture("water", 77).save(folder / "water" / "deeper" / "more.png")
    ran = fit(command, small_model, folder, tmp_path / "mine")
    assert [line for line in ran.stderr.splitlines() if line.startswith("left out: ")] == [
        "left out: beside.png: it lies in no class's folder",
        "left out: brick/003.png: the same photo is in brick and in water",
        "left out: brick/broken.jpg: not_an_image: "
        + ran.stderr.split("not_an_image: ")[1].splitlines()[0],
        "left out: grass/again.png: it is the same photo as grass/000.png",
        "left out: water/both.png: the same photo is in brick and in water",
    ]
    assert ran.stdout.startswith("3 classes, 36 photos (11 to 13 a class)")
    report = json.loads((tmp_path / "mine" / "fit.json").read_text())
    assert report["n_left_out"] == 5


def test_classes_with_too_little_to_learn_from_are_named(
    small_model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cli.model_fit.check_installed", lambda: None)
    out = tmp_path / "mine"
    folder = textures(tmp_path / "one", 6, labels=("brick",))
    ran = fit(command, small_model, folder, out, code=2)
    assert "has one sub-folder, brick: it should have one of photos for each class" in ran.stderr
    (folder / "nothing").mkdir()
    ran = fit(command, small_model, folder, out, code=2)
    assert (
        "the class nothing has 0 photos that can be used, and each needs at least 5" in ran.stderr
    )
    textures(folder, 5, labels=("grass",))
    (folder / "nothing").rmdir()
    (folder / "grass" / "000.png").write_bytes(b"no photo")
    ran = fit(command, small_model, folder, out, code=2)
    assert "the class grass has 4 photos that can be used (left out is grass/000.png: not" in ran.stderr  # fmt: skip
    ran = fit(command, small_model, folder / "brick", out, code=2)
    assert "has no sub-folder" in ran.stderr
    ran = fit(command, small_model, folder / "brick" / "000.png", out, code=2)
    assert "is not a folder; name one that has a sub-folder of photos" in ran.stderr
    assert not out.exists()


def test_only_an_earlier_fit_is_replaced(
    small_model: Path, folder: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    from vit.training.fit_card import check_place

    for place, message in (
        (tmp_path / "model.safetensors", "would be one file, .* name a folder"),
        (tmp_path / "none" / "mine", "there is no folder"),
        (small_model, "is not a bundle that `models fit` wrote"),
        (folder, "is not a bundle that `models fit` wrote"),
    ):
        with pytest.raises(ModelError, match=message):
            check_place(place)
    fit(command, small_model, folder, out)
    (out / "notes.txt").write_text("mine")
    textures(folder, 12, labels=("grass",), first=200)
    fit(command, small_model, folder, out)
    assert json.loads((out / "fit.json").read_text())["examples"]["grass"] == 24
    assert load_classifier(str(out)).labels == ("brick", "grass", "water")
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".mine*"))


@pytest.mark.slow
def test_a_fit_that_dies_half_way_leaves_no_model_that_mixes_two(
    small_model: Path,
    folder: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "mine"
    fit(command, small_model, folder, out)
    before = (out / "head.safetensors").read_bytes()
    textures(folder, 12, labels=("grass",), first=200)
    (folder / "water").rename(folder / "zebra")
    really = Path.replace
    for survives in range(5):
        left = [survives]

        def dies(path: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return really(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            command("models", "fit", folder, "--model", small_model, "--out", out)
        with pytest.raises(ModelError, match=r"has no head.safetensors"):
            load_classifier(str(out))
    fit(command, small_model, folder, out)
    assert load_classifier(str(out)).labels == ("brick", "grass", "zebra")
    assert (out / "head.safetensors").read_bytes() != before


def test_without_scikit_learn_it_says_what_to_install(
    small_model: Path,
    folder: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    ran = fit(command, small_model, folder, tmp_path / "mine", code=2)
    assert "pip install 'label-images[fit]'" in ran.stderr
    assert not (tmp_path / "mine").exists()
