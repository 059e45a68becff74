"""A model of many labels a photo: sigmoids, from transformers' config to the table and its proof."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ImageClassificationPipeline, ViTForImageClassification, ViTImageProcessor
from transformers import ViTConfig as TheirConfig

from jobs.manifest import Fingerprint, Manifest
from pipeline.label.identity import identify
from pipeline.table.verify import verify_table
from tests.helpers import Command, peaked_, rows
from tests.test_jobs_plan import FINGERPRINT
from vit.checkpoints.bundle import write_bundle
from vit.classifier import load_classifier
from vit.errors import ModelError

LABELS = {class_id: f"tag {class_id}" for class_id in range(6)}


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, of a model that was trained for many labels a photo."""
    torch.manual_seed(0)
    config = TheirConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        id2label=LABELS,
        problem_type="multi_label_classification",
    )
    theirs = ViTForImageClassification(config)
    peaked_(theirs)
    folder = tmp_path_factory.mktemp("models") / "tagger"
    theirs.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_table_holds_what_transformers_own_pipeline_says(
    tagger: Path, photos: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "labels.parquet"
    ran = command(photos, "--out", out, "--model", tagger, "--top-k", 6, "--precision", "fp32")
    assert ran.returncode == 0, ran.stderr
    assert "audit: " in ran.stderr
    theirs = ImageClassificationPipeline(
        model=ViTForImageClassification.from_pretrained(tagger),
        image_processor=ViTImageProcessor.from_pretrained(tagger),
    )
    labelled = rows(out)
    for row in labelled:
        expected = theirs(f"{row['root']}/{row['path']}", top_k=6)
        assert [each["label"] for each in row["top_k"]] == [each["label"] for each in expected]
        scores = [each["probability"] for each in row["top_k"]]
        assert scores == pytest.approx([each["score"] for each in expected], abs=1e-3)
        assert row["probability"] == scores[0]
    assert max(sum(each["probability"] for each in row["top_k"]) for row in labelled) > 1.5
    record = json.loads(pq.read_metadata(out).metadata[b"label_images"])
    assert record["fingerprint_fields"]["activation"] == "sigmoid"
    assert command("verify", out).returncode == 0
    assert "no image decoded" in command(photos, "--out", out).stdout


def test_scores_above_one_are_found_by_verify_and_sums_only_in_a_softmax_s_table(
    tagger: Path, small_model: Path, photos: Path, command: Command, tmp_path: Path
) -> None:
    tables = {}
    for model in (tagger, small_model):
        tables[model] = tmp_path / f"{model.name}.parquet"
        assert command(photos, "--out", tables[model], "--model", model).returncode == 0
    for model, table in tables.items():
        metadata = {
            key: value
            for key, value in pq.read_metadata(table).metadata.items()
            if key.startswith(b"label_images")
        }
        written = pq.read_table(table).replace_schema_metadata(metadata)

        def problems(score: float, out: Path = table, written: pa.Table = written) -> str:
            """What verify says where the first row's scores are all this one."""
            changed = written.to_pylist()
            changed[0] |= {"probability": score}
            changed[0]["top_k"] = [each | {"probability": score} for each in changed[0]["top_k"]]
            pq.write_table(pa.Table.from_pylist(changed, written.schema), out)
            return "; ".join(verify_table(out)[1])

        assert ("or add up to more" in problems(0.9)) == (model == small_model)
        for score in (1.1, -0.1, float("nan")):
            assert "probabilities are not between 0 and 1" in problems(score)


def test_it_is_shown_and_kept_in_a_bundle(tagger: Path, command: Command, tmp_path: Path) -> None:
    ran = command("models", "convert", tagger, "--out", tmp_path / "bundle")
    assert ran.returncode == 0, ran.stderr
    theirs, ours = load_classifier(str(tagger)), load_classifier(str(tmp_path / "bundle"))
    assert ours.head.activation == ours.spec.activation == theirs.head.activation == "sigmoid"
    features = torch.randn(3, 48)
    assert torch.equal(ours.scores(features), theirs.scores(features))
    assert (
        "activation     sigmoid: each class by itself" in command("models", "show", tagger).stdout
    )
    assert "activation     softmax" in command("models", "show", "embedded").stdout


def test_a_reader_of_softmaxes_alone_refuses_the_bundle_of_a_sigmoid(
    tagger: Path, small_model: Path, tmp_path: Path
) -> None:
    versions = []
    for name in (tagger, small_model):
        classifier = load_classifier(str(name))
        out = tmp_path / name.name
        write_bundle(classifier.spec, classifier.model.state_dict(), out)
        config = json.loads((out / "config.json").read_text())
        versions.append((config["label_images_bundle"], config.get("activation")))
    assert versions == [(2, "sigmoid"), (1, None)]
    change(tmp_path / tagger.name, activation="relu")
    with pytest.raises(ModelError, match="activation is 'relu'; choose one of softmax, sigmoid"):
        load_classifier(str(tmp_path / tagger.name))


def test_a_sigmoid_is_in_the_fingerprint_and_a_softmax_is_as_it_was(
    tagger: Path, small_model: Path
) -> None:
    sigmoid = identify(load_classifier(str(tagger)), 5).fingerprint
    softmax = replace(sigmoid, activation="softmax")
    assert sigmoid.digest != softmax.digest
    assert sigmoid.features_digest == softmax.features_digest
    assert sigmoid.head_digest != softmax.head_digest
    assert sigmoid.differences(softmax) == ["activation (was softmax, is sigmoid)"]
    assert "activation" not in softmax.to_record()
    for fingerprint in (sigmoid, softmax):
        assert Fingerprint.from_record(fingerprint.to_record()) == fingerprint
    assert identify(load_classifier(str(small_model)), 5).fingerprint.activation == "softmax"


def test_a_manifest_of_a_sigmoid_comes_back(tmp_path: Path) -> None:
    manifest = Manifest(
        "p", "0", "2026", {}, None, 1, 1, {}, "m", replace(FINGERPRINT, activation="sigmoid"), {}
    )
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_the_problem_type_decides_and_what_gives_no_scores_is_refused(
    tagger: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tagger / name).read_bytes())
    for problem in ("single_label_classification", None):
        change(tmp_path, problem_type=problem)
        assert load_classifier(str(tmp_path)).head.activation == "softmax"
    change(tmp_path, problem_type="regression")
    with pytest.raises(ModelError, match=r"trained for regression, .* supported are single_label"):
        load_classifier(str(tmp_path))


def test_a_single_class_is_a_classifier_where_it_is_a_sigmoid(tmp_path: Path) -> None:
    config = TheirConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        id2label={0: "cat"},
        problem_type="multi_label_classification",
    )
    theirs = ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    ours = load_classifier(str(tmp_path))
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    with torch.inference_mode():
        expected = theirs(images).logits.sigmoid()
        assert torch.allclose(ours.scores(ours.backbone(images)), expected, atol=1e-5)
