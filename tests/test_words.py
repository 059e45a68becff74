"""Labels in the user's own words: a folder is labelled, a word changes, a bundle is baked of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from pipeline.errors import TableError
from pipeline.label import ray_node
from pipeline.label.local import load_model
from pipeline.load.decode import decode_image
from pipeline.plan.choice import ModelChoice, choose_model
from pipeline.settings import DEFAULT_MAX_PIXELS, Settings
from pipeline.table.table import Table, read_record
from tests.helpers import Command, photo, rows
from tests.text_models import model_folder
from vit.classifier import Classifier, load_classifier
from vit.errors import ModelError
from vit.preprocess import normalise
from vit.text.head_cache import cache_folder
from vit.text.words import word_vectors

WORDS = "cat\nred bus\ninvoice: a photo of an invoice | a scanned bill\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("clip") / "clip", "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("siglip") / "siglip", "siglip")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def options(photos: Path, tmp_path: Path) -> list[Any]:
    return [photos, "--out", tmp_path / "labels.parquet", "--precision", "fp32", "--workers", 0]


def without_text_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `text` is not installed."""
    for name in ("open_clip_tower", "transformers_tower"):
        monkeypatch.setitem(__import__("sys").modules, f"vit.text.{name}", None)


@torch.inference_mode()
def expected(classifier: Classifier, file: Path) -> dict[str, float]:
    sample: Any = decode_image(0, file.read_bytes(), classifier.preprocess, DEFAULT_MAX_PIXELS)
    pixels = normalise(sample.pixels[None], classifier.preprocess)
    scores = classifier.scores(classifier.backbone(pixels))[0].tolist()
    return dict(zip(classifier.labels, scores, strict=True))


def test_a_folder_is_labelled_with_words_and_again_with_others(
    command: Command, options: list[Any], clip: Path, words: Path, photos: Path, tmp_path: Path
) -> None:
    first = command(*options, "--model", clip, "--labels", words)
    assert first.returncode == 0, first.stderr
    assert "model: clip, 3 classes" in first.stderr
    assert "get the prompt 'a photo of a {}'; --template says another" in first.stderr
    classifier = load_classifier(str(clip), words)
    for row in rows(tmp_path / "labels.parquet"):
        scores = expected(classifier, photos / row["path"])
        assert row["label"] == max(scores, key=scores.__getitem__)
        for best in row["top_k"]:
            assert best["probability"] == pytest.approx(scores[best["label"]], abs=1e-4)

    again = command(*options)  # the table remembers its words
    assert "nothing changed: 10 found" in again.stdout, again.stderr

    words.write_text(WORDS.replace("cat", "dog"))
    plan = command("plan", *options)
    assert "10  stale" in plan.stdout
    because = next(line for line in plan.stdout.splitlines() if line.startswith("stale because of"))
    assert because.startswith(
        "stale because of the class names (1 added: dog; 1 removed: cat), the head (was "
    )
    assert "weights" not in because
    second = command(*options)
    assert second.returncode == 0, second.stderr
    said = "labelling all again, since this changed: the class names (1 added: dog; 1 removed: cat)"
    assert said in second.stderr
    assert {row["label"] for row in rows(tmp_path / "labels.parquet")} <= {"dog", "red bus", "invoice"}  # fmt: skip
    assert "nothing changed" in command(*options).stdout

    # Of a changed prompt the names say nothing.
    words.write_text(WORDS.replace("cat", "dog").replace("a scanned bill", "a bill"))
    because = command("plan", *options).stdout
    assert "stale because of the head (1 with other prompts: invoice)" in because


def test_templates_and_activation_are_remembered(
    command: Command, options: list[Any], siglip: Path, words: Path, tmp_path: Path
) -> None:
    ran = command(
        *options, "--model", siglip, "--labels", words,
        "--template", "a {}", "--template", "the {}", "--activation", "softmax",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "get the prompt" not in ran.stderr
    record = read_record(tmp_path / "labels.parquet")
    assert record is not None
    assert record.choice is not None
    assert record.choice["templates"] == ["a {}", "the {}"]
    assert record.choice["activation"] == "softmax"
    assert "nothing changed" in command(*options).stdout
    assert "nothing changed" in command(*options, "--model", siglip).stdout
    plan = command("plan", *options, "--activation", "sigmoid").stdout
    assert "stale because of activation (was softmax, is sigmoid), the head" in plan
    plan = command("plan", *options, "--template", "a {}").stdout
    assert "stale because of the head (2 with other prompts: cat, red bus)" in plan


def test_other_templates_may_replace_the_labels_of_a_whole_table() -> None:
    remembered = ModelChoice("m", "/w.txt", templates=("a {}",), activation="sigmoid")
    assert not choose_model(Settings(), remembered).may_replace
    assert not choose_model(Settings(templates=("a {}",)), remembered).may_replace
    assert choose_model(Settings(templates=("the {}",)), remembered).may_replace
    assert choose_model(Settings(activation="softmax"), remembered).may_replace
    chosen = choose_model(Settings(out=Path("t.parquet")), remembered)
    assert (chosen.settings.templates, chosen.settings.activation) == (("a {}",), "sigmoid")
    error = chosen.explained(ModelError("no")).args[0]
    assert "--template 'a {}'" in error
    assert "--activation sigmoid" in error
    # Another model has its own.
    assert choose_model(Settings(model="other"), remembered).settings.templates == ()


def test_a_choice_without_words_is_what_an_earlier_version_reads() -> None:
    choice = ModelChoice("m", "/w.txt", top_k=3)
    assert set(choice.to_record()) == {"model", "labels", "arch", "preprocess", "top_k"}
    with_words = ModelChoice("m", "/w.txt", templates=("a {}",), activation="sigmoid")
    for each in (choice, with_words):
        assert ModelChoice.from_record(json.loads(json.dumps(each.to_record()))) == each
    assert ModelChoice.from_record(None) is None


def test_the_next_night_needs_no_text_tower(
    command: Command, options: list[Any], clip: Path, words: Path, photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The model's files were written just now, and are to be vouched for all the same.
    monkeypatch.setattr("pipeline.label.identity._SETTLED_S", -3600.0)
    assert command(*options, "--model", clip, "--labels", words).returncode == 0
    without_text_towers(monkeypatch)
    photo(50).save(photos / "new.jpg")
    ran = command(*options)
    assert ran.returncode == 0, ran.stderr
    assert "1 labelled" in ran.stdout
    shutil.rmtree(cache_folder())
    assert "nothing changed" in command(*options).stdout  # which takes no head
    photo(51).save(photos / "newer.jpg")
    ran = command(*options)
    assert ran.returncode == 2
    assert "pip install 'label-images[text]'" in ran.stderr


def test_a_head_made_again_makes_no_row_stale(
    command: Command, options: list[Any], clip: Path, words: Path
) -> None:
    """As on another machine, where the last bits may differ: what it was made of is the same."""
    assert command(*options, "--model", clip, "--labels", words).returncode == 0
    shutil.rmtree(cache_folder().parent)
    assert "nothing changed" in command(*options).stdout
    assert list(cache_folder().iterdir())


def test_a_bundle_of_words_needs_neither_words_nor_text_tower(
    command: Command, options: list[Any], clip: Path, words: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert command(*options, "--model", clip, "--labels", words, "--template", "a {}").returncode == 0  # fmt: skip
    apart = ("run_id", "labelled_at", "fingerprint", "model")
    before = rows(tmp_path / "labels.parquet", without=apart)
    bundle = tmp_path / "my-words"
    assert before[0]["label"] is not None
    ran = command(
        "models", "convert", clip, "--labels", words, "--template", "a {}", "--out", bundle
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{bundle}: 3 classes, 32 pixels")
    without_text_towers(monkeypatch)
    shutil.rmtree(cache_folder())
    words.unlink()
    ran = command(*options, "--model", bundle)
    assert ran.returncode == 0, ran.stderr
    after = rows(tmp_path / "labels.parquet", without=apart)
    assert after == before
    shown = command("models", "show", bundle).stdout
    assert "classes        3: cat, red bus, invoice" in shown
    assert "head           of its own: features of length 1 [24] -> [3]" in shown
    one_file = tmp_path / "words.safetensors"
    ran = command("models", "convert", bundle, "--out", one_file)
    assert ran.returncode == 2
    assert not one_file.exists()


def test_words_that_are_gone_are_told_with_what_the_table_remembers(
    command: Command, options: list[Any], clip: Path, words: Path
) -> None:
    assert command(*options, "--model", clip, "--labels", words).returncode == 0
    words.unlink()
    ran = command(*options)
    assert ran.returncode == 2
    assert "the words in" in ran.stderr
    assert f"was labelled with --model {clip}, --labels {words}" in ran.stderr


def test_what_a_model_of_images_and_text_needs_and_others_do_not_take(
    command: Command, photos: Path, clip: Path, words: Path, small_model: Path, tmp_path: Path
) -> None:
    photo = photos / "0000.jpg"
    ran = command(photo, "--model", clip)
    assert ran.returncode == 2
    assert "has no classes of its own, and reads text" in ran.stderr
    assert "--labels words.txt" in ran.stderr
    for option in (["--template", "a {}"], ["--activation", "sigmoid"]):
        ran = command(photo, "--model", small_model, *option)
        assert ran.returncode == 2
        assert f"{option[0]} is for labels in your own words" in ran.stderr
    # Without a text tower --labels are class names in class order, as ever.
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {number}: a | b\n" for number in range(10)))
    ran = command(photo, "--model", small_model, "--labels", names, "--top-k", 10)
    assert "name 1: a | b" in ran.stdout
    bare = tmp_path / "model.safetensors"
    shutil.copy(clip / "model.safetensors", bare)
    ran = command(photo, "--model", bare, "--labels", words)
    assert ran.returncode == 2
    tower = tmp_path / "tower"
    shutil.copytree(clip, tower)
    config = json.loads((clip / "config.json").read_text())
    (tower / "config.json").write_text(
        json.dumps(config | {"architectures": ["CLIPVisionModelWithProjection"]})
    )
    ran = command(photo, "--model", tower, "--labels", words)
    assert ran.returncode == 2
    assert "has no head" in ran.stderr
    assert "one that reads text, by its folder" in ran.stderr


def test_models_show_with_words_and_without(command: Command, siglip: Path, words: Path) -> None:
    plain = command("models", "show", siglip)
    assert "classes        none of its own: it reads text" in plain.stdout, plain.stderr
    shown = command("models", "show", siglip, "--labels", words).stdout
    assert "classes        3: cat, red bus, invoice" in shown
    assert "activation     sigmoid" in shown
    shown = command("models", "show", siglip, "--labels", words, "--activation", "softmax").stdout
    assert "activation     softmax" in shown
    listed = command("models", "show", siglip, "--labels", words, "--classes").stdout
    assert listed.splitlines() == ["0\tcat", "1\tred bus", "2\tinvoice"]


def test_fetch_of_a_model_that_reads_text(command: Command, clip: Path, words: Path) -> None:
    ran = command("models", "fetch", clip)
    assert ran.returncode == 0, ran.stderr
    assert "loads    no classes of its own: it reads text (--labels words.txt), 32 pixels" in ran.stdout  # fmt: skip
    ran = command("models", "fetch", clip, "--labels", words, "--template", "a {}")
    assert "loads    3 classes (cat, red bus, invoice), 32 pixels" in ran.stdout, ran.stderr
    assert ran.stdout.rstrip().endswith(f"--labels {words} --template 'a {{}}'")
    assert list(cache_folder().iterdir())


def test_a_ray_node_loads_the_words_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(
        model="m", labels=Path("w"), templates=("a {}",), activation="sigmoid", top_k=2
    )
    loaded: list[Settings] = []
    monkeypatch.setattr(ray_node, "Machine", loaded.append)
    ray_node._loaded.cache_clear()
    ray_node._machine(asked)
    ray_node._loaded.cache_clear()
    assert loaded == [asked]


def test_the_library_takes_words(clip: Path, words: Path) -> None:
    settings = Settings(model=str(clip), labels=words, templates=("a {}",))
    assert load_model(settings).labels == ("cat", "red bus", "invoice")


@pytest.mark.parametrize("family", ["clip", "siglip", "open_clip"])
def test_the_vectors_of_words_are_what_the_head_is_made_of(family: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / family, family)
    names = ["cat", "red bus"]
    (tmp_path / "words.txt").write_text("\n".join(names))
    templates = ("a {}", "the {}")
    head = load_classifier(str(folder), tmp_path / "words.txt", templates=templates).head
    vectors = word_vectors(str(folder), names, templates)
    assert (vectors.dtype, list(vectors.shape)) == (torch.float32, [2, head.n_features])
    assert torch.allclose(vectors, torch.nn.functional.normalize(head.weight, dim=-1), atol=1e-6)
    default, plain = word_vectors(str(folder), ["cat"]), word_vectors(str(folder), ["cat"], ["{}"])
    assert torch.equal(word_vectors(str(folder), ["a photo of a cat"], ["{}"]), default)
    assert not torch.allclose(plain, default, atol=0.01)


def test_words_that_cannot_be_looked_for_are_refused(clip: Path, small_model: Path) -> None:
    refused: list[tuple[Any, Any, str]] = [
        ([], (), "there are no words"),
        (["cat", " "], (), "one of them is empty"),
        ("cat", (), "are lists of texts"),
        (["cat"], "a {}", "are lists of texts"),
        (["cat"], ["a photo"], "has no {}"),
        (["cat " * 40], (), r"the prompt .* is .* tokens long, and clip reads 32"),
    ]
    for words, templates, message in refused:
        with pytest.raises(ModelError, match=message):
            word_vectors(str(clip), words, templates)
    with pytest.raises(ModelError, match="reads no text, so words cannot be looked for"):
        word_vectors(str(small_model), ["cat"])


def test_the_library_finds_photos_by_words_of_the_model_that_made_the_embeddings(
    command: Command, options: list[Any], clip: Path, words: Path, photos: Path, tmp_path: Path,
    small_model: Path,
) -> None:  # fmt: skip
    model = shutil.copytree(clip, tmp_path / "model")
    ran = command(
        *options, "--model", model, "--labels", words, "--embeddings", tmp_path / "embeddings"
    )
    assert ran.returncode == 0, ran.stderr
    embeddings = Table(tmp_path / "embeddings")
    vectors = pipeline.word_vectors(embeddings, ["cat", "red bus"])
    assert vectors.dtype == np.float32
    features = np.stack(embeddings.scan(["embedding"])["embedding"].to_numpy())
    cosines = features @ vectors.T / np.linalg.norm(features, axis=1, keepdims=True)
    scores = load_classifier(str(model), words).head
    logits = scores.scores(torch.from_numpy(features)).log()[:, :2].numpy()
    scale = float(scores.weight[0].norm())
    # What differs between two words is the scale times what differs between their cosines.
    assert np.allclose(scale * np.diff(cosines), np.diff(logits), atol=1e-3)

    model_folder(other := tmp_path / "other", "clip", seed=1)
    shutil.copy(other / "model.safetensors", model)
    with pytest.raises(
        TableError, match=r"is not the file that .*embeddings was made with any more"
    ):
        pipeline.word_vectors(embeddings, ["cat"])
    out = tmp_path / "other.parquet"
    asked = [photos, "--out", out, "--embeddings", tmp_path / "without-words", "--workers", 0]
    assert command(*asked, "--model", small_model).returncode == 0
    with pytest.raises(ModelError, match="reads no text"):
        pipeline.word_vectors(Table(tmp_path / "without-words"), ["cat"])
