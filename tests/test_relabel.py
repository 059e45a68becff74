"""Other labels, the same features: they are made from embeddings, and no image is opened."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.job import Job
from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.product import Product
from pipeline.table.table import Table
from tests.helpers import Command, make_photos, photo
from tests.test_crash import SAMPLED, Crash, Disk
from tests.test_embeddings import assert_beside
from vit.user_cache import user_cache

AS_MADE = ["run_id", "labelled_at"]


@pytest.fixture
def options(small_model: Path, tmp_path: Path) -> list[Any]:
    where = ["--embeddings", tmp_path / "embeddings", "--precision", "fp32", "--workers", 0]
    return ["--model", small_model, *where, "--audit", 0, "--shard-size", 4]


def other_words(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("".join(f"word {i}\n" for i in range(10)))
    return path


def rows_of(out: Path) -> pa.Table:
    return Table(out).scan().drop_columns(AS_MADE)


def no_reading(patch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("an image was read")

    patch.setattr("pipeline.load.image_dataset.read_image", read)


@pytest.mark.parametrize("slash", ["", "/"], ids=["file", "folder"])
@pytest.mark.parametrize("change", ["labels", "top_k"])
def test_no_image_is_read_and_the_labels_are_those_of_decoding(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    slash: str,
    change: str,
) -> None:
    monkeypatch.setattr(Product, "file_rows", 6)
    monkeypatch.setitem(vars(EMBEDDINGS), "row_group_rows", 4)
    monkeypatch.setattr("pipeline.label.rescore._ROWS_AT_ONCE", 5)
    photos, out, fresh = make_photos(tmp_path / "photos", 19), tmp_path / "l", tmp_path / "fresh"
    (photos / "0007x.jpg").write_bytes(b"no photo")
    options = [*options, "--max-errors", 5]
    assert command(photos, "--out", f"{out}{slash}", *options).returncode == 0
    assert command(photos, "--out", f"{fresh}{slash}", *without(options)).returncode == 0
    before = Table(out).record
    more = ["--labels", other_words(tmp_path)] if change == "labels" else ["--top-k", 3]
    plan = command("plan", photos, "--out", out, *options, *more)
    assert "19  relabelled  to relabel from their embeddings" in plan.stdout, plan.stdout
    assert command(photos, "--out", f"{fresh}{slash}", *without(options), *more).returncode == 0
    with monkeypatch.context() as patch:
        no_reading(patch)
        ran = command(photos, "--out", f"{out}{slash}", *options, *more)
    assert ran.returncode == 0, ran.stderr
    assert "20 found, 0 labelled, 19 relabelled from embeddings, 1 carried over" in ran.stdout
    # A row that failed then is decoded again where there are no embeddings, and fails again.
    assert rows_of(out).equals(rows_of(fresh))
    run_ids = Table(out).scan(["run_id", "status"]).to_pylist()
    assert {row["run_id"] == before.run_id for row in run_ids if row["status"] == "ok"} == {False}
    assert_beside(out, tmp_path / "embeddings")
    for place in (out, tmp_path / "embeddings"):
        verified = command("verify", place)
        assert verified.returncode == 0, verified.stdout
    assert "nothing changed" in command(photos, "--out", f"{out}{slash}", *options, *more).stdout


def without(options: list[Any]) -> list[Any]:
    """The same options, but for the embeddings."""
    return [*options[:2], *options[4:]]


def test_new_photos_and_missing_embeddings_are_decoded_beside_it(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Product, "file_rows", 6)
    photos, out = make_photos(tmp_path / "photos", 12), tmp_path / "l.parquet"
    assert command(photos, "--out", out, *options).returncode == 0
    photo(90).save(photos / "0003.jpg")
    photo(91).save(photos / "zz.jpg")
    (photos / "0005.jpg").unlink()
    damaged = sorted((tmp_path / "embeddings").iterdir())[1]
    damaged.write_bytes(b"no longer")
    assert command("verify", tmp_path / "embeddings", "--repair").returncode == 0
    kept = Table(tmp_path / "embeddings").record.counts["rows"]
    assert 0 < kept < 12
    more = ["--labels", other_words(tmp_path)]
    ran = command(photos, "--out", out, *options, *more)
    assert ran.returncode == 0, ran.stderr
    assert "12 found, " in ran.stdout
    assert " relabelled from embeddings, 0 carried over, 1 gone" in ran.stdout
    n_relabelled = int(ran.stdout.split(" relabelled")[0].split()[-1])
    assert 0 < n_relabelled < 10
    fresh = tmp_path / "fresh.parquet"
    assert command(photos, "--out", fresh, *without(options), *more).returncode == 0
    ours, theirs = rows_of(out), rows_of(fresh)
    for name in ("path", "label", "class_id", "status", "content_hash", "fingerprint", "width"):
        assert ours[name].equals(theirs[name]), name
    for a, b in zip(
        ours["probability"].to_pylist(), theirs["probability"].to_pylist(), strict=True
    ):
        assert a == pytest.approx(b, abs=1e-6)
    assert_beside(out, tmp_path / "embeddings")


def test_another_backbone_is_decoded_anew(
    tmp_path: Path,
    command: Command,
    options: list[Any],
) -> None:
    photos, out = make_photos(tmp_path / "photos", 4), tmp_path / "l.parquet"
    assert command(photos, "--out", out, *options).returncode == 0
    ran = command(photos, "--out", out, "--model", "embedded", *options[2:])
    assert "4 found, 4 labelled, 0 carried over" in ran.stdout


def test_rows_of_a_disk_that_is_away_are_relabelled_too(
    tmp_path: Path,
    command: Command,
    options: list[Any],
) -> None:
    one, two = (make_photos(tmp_path / name, 4) for name in ("one", "two"))
    out = tmp_path / "l.parquet"
    assert command(one, two, "--out", out, *options).returncode == 0
    away = two.rename(tmp_path / "away")
    two.mkdir()
    more = ["--labels", other_words(tmp_path)]
    ran = command(one, two, "--out", out, *options, *more)
    assert ran.returncode == 7, ran.stderr
    assert set(Table(out).scan()["label"].to_pylist()) <= {f"word {i}" for i in range(10)}
    assert command("verify", out).returncode == 0
    two.rmdir()
    away.rename(two)
    assert "nothing changed" in command(one, two, "--out", out, *options, *more).stdout


def test_many_labels_are_not_replaced_without_a_word(
    tmp_path: Path,
    small_model: Path,
    command: Command,
    options: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.plan.guards.FEW_ROWS", 3)
    photos, out = make_photos(tmp_path / "photos", 4), tmp_path / "l.parquet"
    model = tmp_path / "model"
    os.symlink(small_model, model)
    options = ["--model", model, *options[2:]]
    assert command(photos, "--out", out, *options).returncode == 0
    before = out.read_bytes()
    monkeypatch.setattr("vit.classifier.Classifier.temperature", 0.5)
    shutil.rmtree(user_cache("identities"), ignore_errors=True)  # which sees files, and not this
    refused = command(photos, "--out", out, *options[2:])
    assert refused.returncode == 5
    assert "4 labels of" in refused.stderr
    assert out.read_bytes() == before
    assert not Job(out).has_plan


@pytest.mark.slow
@SAMPLED
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_each_change_to_the_disk(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, after: bool, is_whole: bool
) -> None:
    """CI crashes where Disk.sample() says, so that it sees every state once; the soak everywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")  # as in test_crash.py
    start, saved = tmp_path / "start", tmp_path / "saved"
    settings = Settings(
        paths=(start / "photos",), out=start / "labels.parquet", embeddings=start / "embeddings",
        model=str(small_model), workers=0, shard_size=4, precision="fp32", audit=0,
    )  # fmt: skip
    make_photos(start / "photos", 9)
    run(settings, Console())
    photo(50).save(start / "photos" / "0004x.jpg")
    (start / "photos" / "0002.jpg").unlink()
    settings = replace(settings, labels=other_words(tmp_path))
    shutil.copytree(start, saved, symlinks=True)
    with monkeypatch.context() as patch:
        disk = Disk(patch, None, after)
        run(settings, Console())
    expected = rows_of(start / "labels.parquet")
    for point in range(len(disk.changes)) if is_whole else sorted(disk.sample()):
        shutil.rmtree(start)
        shutil.copytree(saved, start, symlinks=True)
        with monkeypatch.context() as patch:
            Disk(patch, point, after)
            with pytest.raises(Crash):
                run(settings, Console())
        run(settings, Console())
        assert rows_of(start / "labels.parquet").equals(expected), disk.changes[point]
        assert_beside(start / "labels.parquet", start / "embeddings")
