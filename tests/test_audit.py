"""The audit finds labels that are not the photos' own, and leaves good ones alone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.job import Job
from pipeline.failures import Failure
from pipeline.find.source import Source
from pipeline.label.audit import Audit
from pipeline.label.deferred import DeferredMachine
from pipeline.label.local import load_model
from pipeline.label.predictions import Predictions
from pipeline.label.reference import label_again
from pipeline.label.rows import Rows
from pipeline.load.batch import Batch
from pipeline.load.read import read_image
from pipeline.settings import Settings
from tests.helpers import Command, make_photos, photo, rows


@pytest.fixture
def mixed_up(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A fault: within a batch each image gets its neighbour's labels."""
    make = Rows.make

    def shifted(self: Rows, batch: Batch, predictions: Predictions, labelled_at: Any) -> Any:
        predictions = Predictions(
            predictions.class_ids[::-1].copy(),
            predictions.probabilities[::-1].copy(),
            predictions.is_finite,
        )
        return make(self, batch, predictions, labelled_at)

    monkeypatch.setattr(Rows, "make", shifted)
    return monkeypatch


# How far a sound run's probabilities may be off from the audit's, which are of fp32.
BOUND = {"fp32": 1e-4, "bf16": 0.05}


def test_a_sound_run_passes_and_says_by_how_much(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "l.parquet"
    ran = command(
        photos, "--out", out, "--model", small_model, "--audit", 10, "--precision", precision
    )
    assert ran.returncode == 0
    record = json.loads((tmp_path / ".l.parquet.job" / "run.json").read_text())["audit"]
    assert (
        "audit: 10 rows labelled again, one by one in fp32: probabilities differ by "
        f"{record['largest']:.4f} at most" in ran.stderr
    )
    assert record["rows"] == 10
    assert 0 <= record["mean"] <= record["largest"] < BOUND[precision]
    assert (record["largest"] > 1e-5) == (precision == "bf16"), (
        "half precision shows, or it was not used"
    )


@pytest.mark.parametrize(("n", "expected"), [(10, 1), (101, 3), (900, 16)])
def test_by_default_it_is_a_small_part_of_the_run(
    small_model: Path, command: Command, tmp_path: Path, n: int, expected: int
) -> None:
    for number in range(n):
        (tmp_path / "p").mkdir(exist_ok=True)
        if number < 30:
            photo(number).save(tmp_path / "p" / f"{number}.jpg")
        else:
            (tmp_path / "p" / f"{number}.jpg").symlink_to(f"{number % 30}.jpg")
    assert (
        f"audit: {expected} row{'s' if expected > 1 else ''} labelled"
        in command(tmp_path / "p", "--out", tmp_path / "t", "--model", small_model).stderr
    )


def test_mixed_up_rows_never_reach_the_table(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    mixed_up: pytest.MonkeyPatch,
    precision: str,
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--audit",
        10,
        "--precision",
        precision,
    )
    ran = command(*arguments)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("label-images: audit: labelled again one by one in fp32, ")
    assert f"{photos}/0001.jpg by " in last
    assert f"so {out} is not written" in last
    assert not out.exists()
    mixed_up.undo()
    again = command(*arguments)
    assert "going on: 10 of 10 images are done already" in again.stderr
    assert again.returncode == 1, "the labels are as wrong as before"
    assert command(*arguments, "--restart").returncode == 0
    whole = tmp_path / "whole.parquet"
    unaudited = (
        photos,
        "--out",
        whole,
        "--model",
        small_model,
        "--audit",
        0,
        "--precision",
        precision,
    )
    assert command(*unaudited).returncode == 0
    assert rows(out) == rows(whole)


def test_an_old_table_stays_until_the_new_one_is_sound(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--audit",
        10,
        "--precision",
        precision,
    )
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    make_photos(photos, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vit.pixels.Stored.to_input",
            lambda self, preprocess, notes: _black(preprocess.crop_size),
        )
        patch.setattr("pipeline.label.reference.decode_image", _real_decode)
        assert command(*arguments, "--workers", 0).returncode == 1
    assert out.read_bytes() == before
    assert command(*arguments, "--audit", 0).returncode == 0, "taken as they are, when told so"


def _black(size: int) -> Any:
    import torch

    return torch.zeros((3, size, size), dtype=torch.uint8)


def _real_decode(index: int, data: bytes, preprocess: Any, max_pixels: int, scaled: bool) -> Any:
    import io

    from PIL import Image

    from pipeline.failures import ImageFacts
    from pipeline.load.sample import Sample
    from vit.preprocess import fit_image

    return Sample(
        index, fit_image(Image.open(io.BytesIO(data)).convert("RGB"), preprocess), ImageFacts()
    )


@pytest.mark.slow
def test_it_reads_every_format_that_workers_read(
    small_model: Path, process: Command, tmp_path: Path
) -> None:
    """In a process of its own: here some other test may have registered HEIC already."""
    from pillow_heif import from_pillow

    (tmp_path / "p").mkdir()
    for seed in range(3):
        from_pillow(photo(seed)).save(tmp_path / "p" / f"{seed}.heic")
    ran = process(
        tmp_path / "p",
        "--out",
        tmp_path / "l.parquet",
        "--model",
        small_model,
        "--workers",
        1,
        "--audit",
        3,
    )
    assert ran.returncode == 0, ran.stderr
    assert "audit: 3 rows labelled again" in ran.stderr


def test_photos_that_changed_meanwhile_say_nothing_about_the_run(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "l.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.merge", _stop)
        with pytest.raises(_Stopped):
            command(
                photos, "--out", out, "--model", small_model, "--audit", 0, "--precision", precision
            )
    job = Job(out)
    assert job.manifest
    for path in list(photos.glob("*.jpg")):
        photo(99).save(path)
        os.utime(path, (9, 9))
    (photos / "0004.jpg").unlink()

    def read(index: int, source: Source) -> bytes | Failure:
        name = os.path.basename(os.fsdecode(source.place)) if b"/more/" in source.place else ""
        code = {"0001.jpg": "read_error", "0002.jpg": "timeout"}.get(name)
        return Failure(index, code, "the disk") if code else read_image(index, source)

    monkeypatch.setattr("pipeline.label.reference.read_image", read)
    settings = Settings(paths=(photos,), out=out, model=str(small_model))
    model = load_model(settings)
    differences = label_again(job, job.manifest, settings, model.preprocess, lambda: model, 10)
    assert sorted(differences) == [f"{photos}/more/{n:04}.jpg" for n in (0,)]
    assert max(differences.values()) < BOUND[precision]


def test_an_audit_that_finds_nothing_to_label_again_says_so(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(DeferredMachine, "label_again", lambda *_: {})
    ran = command(photos, "--out", tmp_path / "l.parquet", "--model", small_model)
    assert ran.returncode == 0
    assert "audit: no row labelled again" in ran.stderr


class _Stopped(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stopped


def test_the_bounds_are_for_each_row_and_for_the_average() -> None:
    assert not Audit({}).off
    assert not Audit({"torn between two": 0.49}).off
    assert Audit({"wrong": 0.51}).off == {"wrong": 0.51}
    sixteen = {str(place): 0.0 for place in range(16)}
    assert not Audit(sixteen | {"0": 0.49, "1": 0.4}).off
    assert Audit(sixteen | {"0": 0.51}).off == {"0": 0.51}
    assert len(Audit(dict.fromkeys(sixteen, 0.13)).off) == 16
