"""Embeddings, the second product: the keys and order of the table, whatever night comes."""

import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from jobs.job import Job
from pipeline.cli.commands import main
from pipeline.console import Console
from pipeline.finish import merging
from pipeline.load.decode import decode_image
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table import repair
from pipeline.table.embeddings import EMBEDDINGS, SCHEMA
from pipeline.table.merge import Parts
from pipeline.table.product import Product
from pipeline.table.table import Table
from tests.helpers import Command, make_photos, photo
from tests.test_containers import shard
from tests.test_crash import SAMPLED, Crash, Disk, night_two, settings_for
from vit.classifier import load_classifier
from vit.preprocess import normalise


@pytest.fixture
def options(small_model: Path, tmp_path: Path) -> list[Any]:
    where = ["--embeddings", tmp_path / "embeddings", "--precision", "fp32", "--workers", 0]
    return ["--model", small_model, *where, "--audit", 0, "--shard-size", 4]


def read(folder: Path) -> pa.Table:
    return pads.dataset(str(folder), format="parquet", partitioning=None).to_table()


def keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["root"].to_pylist(), table["path"].to_pylist(), strict=True))


def assert_beside(out: Path, embeddings: Path) -> None:
    """The embeddings have the keys and the order of the labelled rows, and what each says is so."""
    labels = Table(out).scan(filter=pads.field("status") == "ok")
    found = read(embeddings)
    assert found.schema.equals(SCHEMA)
    assert keys(found) == keys(labels)
    for name in ("size_bytes", "mtime", "content_hash"):
        assert found[name].to_pylist() == labels[name].to_pylist()


@torch.inference_mode()
def features_of(model: Path, file: Path) -> np.ndarray:
    classifier = load_classifier(str(model))
    sample = decode_image(0, file.read_bytes(), classifier.preprocess, 10**9)
    pixels = normalise(sample.pixels[None], classifier.preprocess)  # type: ignore[union-attr]
    features: np.ndarray = classifier.backbone(pixels)[0].numpy()
    return features


def test_each_labelled_image_has_its_features(
    photos: Path, small_model: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(photos, "--out", out, *options, "--max-errors", 5).returncode == 0
    assert_beside(out, embeddings)
    found = read(embeddings)
    for row in found.to_pylist():
        expected = features_of(small_model, photos / row["path"])
        assert np.allclose(row["embedding"], expected, atol=1e-4)
    fields = Table(out).record
    assert set(found["fingerprint"].to_pylist()) == {Table(embeddings).record.fingerprint}
    assert Table(embeddings).record.fingerprint != fields.fingerprint
    column = pq.read_metadata(next(embeddings.iterdir())).row_group(0).column(6)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.compression == "ZSTD"
    query = f"select count(*), min(len(embedding)) from '{embeddings}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(10, 48)]
    assert command("verify", embeddings).returncode == 0
    assert "nothing changed" in command(photos, "--out", out, *options).stdout


def test_embeddings_asked_for_later_are_made_of_the_rows_that_have_none(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    without = [*options[:2], *options[4:], "--max-errors", 5]
    assert command(photos, "--out", out, *without).returncode == 0
    same = ["root", "path", "status", "label", "class_id", "content_hash"]
    before = Table(out).scan(same)
    plan = command("plan", photos, "--out", out, *options)
    assert re.search(r"10  incomplete +to label: has a label, but no emb", plan.stdout), plan.stdout
    assert command(photos, "--out", out, *options, "--max-errors", 5).returncode == 0
    assert Table(out).scan(same).equals(before)
    assert_beside(out, embeddings)
    photo(50).save(photos / "zz.jpg")
    ran = command(photos, "--out", out, *without)  # a night that leaves them alone
    assert "12 found, 1 labelled" in ran.stdout
    ran = command(photos, "--out", out, *options, "--max-errors", 5)
    assert "12 found, 1 labelled" in ran.stdout, "only the one without an embedding"
    assert_beside(out, embeddings)


@pytest.mark.parametrize("seed", [2, *(pytest.param(n, marks=pytest.mark.soak) for n in (0, 1))])
@pytest.mark.parametrize("slash", ["", "/"], ids=["file", "folder"])
def test_whatever_changes_they_stay_beside_the_table(
    tmp_path: Path,
    small_model: Path,
    command: Command,
    options: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    slash: str,
) -> None:
    """Nights drawn by seeds: CI has one in which all of it happens, the soak two more."""
    monkeypatch.setattr(Product, "file_rows", 6)
    monkeypatch.setitem(vars(EMBEDDINGS), "row_group_rows", 4)
    generator = random.Random(seed)
    folder, out, embeddings = tmp_path / "photos", tmp_path / "l", tmp_path / "embeddings"
    make_photos(folder, 12)
    without = [*options[:2], *options[4:]]
    for night in range(6):
        for name in generator.sample([f"{n:04}.jpg" for n in range(20)], 4):
            what = generator.choice(["photo", "photo", "broken", "gone"])
            if what == "photo":
                photo(generator.randrange(1000)).save(folder / name)
            elif what == "broken":
                (folder / name).write_bytes(b"no photo %d" % night)
            else:
                (folder / name).unlink(missing_ok=True)
        if generator.random() < 0.3:
            command(folder, "--out", f"{out}{slash}", *without, "--max-errors", 99)
        if embeddings.is_dir() and generator.random() < 0.3:
            next(embeddings.iterdir()).write_bytes(b"damaged")
            refused = command(folder, "--out", f"{out}{slash}", *options, "--max-errors", 99)
            if refused.returncode:
                assert f"verify {embeddings} --repair" in refused.stderr
            assert command("verify", embeddings, "--repair").returncode == 0
        ran = command(folder, "--out", f"{out}{slash}", *options, "--max-errors", 99)
        assert ran.returncode == 0, ran.stderr
        assert_beside(out, embeddings)
        for row in read(embeddings).to_pylist():
            expected = features_of(small_model, folder / row["path"])
            assert np.allclose(row["embedding"], expected, atol=1e-4)
        for place in (out, embeddings):
            verified = command("verify", place)
            assert verified.returncode == 0, verified.stdout


def test_another_model_makes_all_of_them_anew(
    photos: Path, small_model: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(photos, "--out", out, *options).returncode == 0
    before = read(embeddings)
    assert command(photos, "--out", out, "--model", "embedded", *options[2:]).returncode == 0
    assert_beside(out, embeddings)
    assert len(read(embeddings)["embedding"][0]) == 192
    assert set(read(embeddings)["fingerprint"].to_pylist()).isdisjoint(
        before["fingerprint"].to_pylist()
    )


def test_places_that_cannot_be(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    rest = options[4:]
    no_out = command(photos, "--embeddings", embeddings, *rest)
    assert (no_out.returncode, "name one with --out" in no_out.stderr) == (2, True)
    same = command(photos, "--out", out, "--embeddings", out, *rest)
    assert (same.returncode, "each needs its own place" in same.stderr) == (2, True)
    nowhere = command(photos, "--out", out, "--embeddings", tmp_path / "no" / "where", *rest)
    assert (nowhere.returncode, "make it first" in nowhere.stderr) == (2, True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    ran = command(photos, "--out", out, "--embeddings", foreign, *options[:2], *rest)
    assert ran.returncode == 5
    assert "files that label-images knows nothing of" in ran.stderr
    assert command(photos, "--out", out, *options).returncode == 0
    swapped = command(photos, "--out", f"{embeddings}/", *options[:2], *rest)
    assert swapped.returncode == 5
    assert "holds embeddings, and not labels" in swapped.stderr
    other = command(photos, "--out", tmp_path / "other.parquet", *options)
    assert other.returncode == 5
    assert f"are those of {out}" in other.stderr
    assert_beside(out, embeddings)


@pytest.mark.slow
@SAMPLED
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_each_change_to_the_disk_leaves_both_products_whole(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, after: bool, is_whole: bool
) -> None:
    """CI crashes where Disk.sample() says, so that it sees every state once; the soak everywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")  # as in test_crash.py

    def settings(folder: Path) -> Settings:
        at = folder / "embeddings"
        return replace(settings_for(folder, small_model), embeddings=at, precision="fp32", audit=0)

    def state(folder: Path) -> list[Any]:
        labels = pq.read_table(folder / "labels.parquet", columns=["path", "label", "top_k"])
        found = read(folder / "embeddings").select(["path", "fingerprint", "embedding"])
        assert_beside(folder / "labels.parquet", folder / "embeddings")
        return [labels.to_pylist(), found.to_pylist()]

    start, whole = tmp_path / "start", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr("tests.test_crash.settings_for", lambda folder, _: settings(folder))
        night_two(start, small_model)
    # Absolute paths are part of what is written: each copy takes the place of the first.
    shutil.copytree(start, whole, symlinks=True)
    saved = tmp_path / "saved"
    start.rename(saved)

    def fresh() -> None:
        shutil.rmtree(start, ignore_errors=True)
        shutil.copytree(saved, start, symlinks=True)

    fresh()
    with monkeypatch.context() as patch:
        disk = Disk(patch, None, after)
        run(settings(start), Console())
    expected = state(start)
    assert any("embeddings" in change for change in disk.changes)
    for point in range(len(disk.changes)) if is_whole else sorted(disk.sample()):
        fresh()
        with monkeypatch.context() as patch:
            Disk(patch, point, after)
            with pytest.raises(Crash):
                run(settings(start), Console())
        run(settings(start), Console())
        assert state(start) == expected, f"crash at {disk.changes[point]}"
        left = {path.name for path in Job(start / "embeddings").folder.iterdir()}
        assert left == {"lock", "table.json"}, f"crash at {disk.changes[point]}"


def without(options: list[Any]) -> list[Any]:
    """The same options, but for the embeddings."""
    return [*options[:2], *options[4:]]


def test_images_in_archives_get_theirs_later(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    shard(photos / "a.tar", 20, 3)
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(photos, "--out", out, *without(options)).returncode == 0
    ran = command(photos, "--out", out, *options)
    assert ran.stdout.startswith("13 found, 13 labelled, 0 carried over, 0 failed"), ran.stdout
    assert_beside(out, embeddings)
    assert "nothing changed: 13 found" in command(photos, "--out", out, *options).stdout


def test_what_happened_without_them_is_made_up_for(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(photos, "--out", out, *options).returncode == 0
    (photos / "0001.jpg").unlink()
    ran = command(photos, "--out", out, *without(options))
    assert f"the embeddings in {embeddings} stay as they are" in ran.stderr
    assert len(read(embeddings)) == 10
    ran = command(photos, "--out", out, *options)
    assert ran.stdout.startswith("9 found, 0 labelled, 9 carried over"), ran.stdout
    assert_beside(out, embeddings)
    assert "nothing changed" in command(photos, "--out", out, *options).stdout


def test_an_embedding_of_other_bytes_is_not_the_image_s(
    photos: Path, tmp_path: Path, command: Command, options: list[Any], small_model: Path
) -> None:
    """The same size and time, as after a restored backup; --restart is what a user does then."""
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(photos, "--out", out, *options).returncode == 0
    by_size = sorted(photos.glob("*.jpg"), key=lambda path: path.stat().st_size)
    changed, other = by_size[-1], by_size[0].read_bytes()
    before = changed.stat()
    changed.write_bytes(other.ljust(before.st_size, b"\0"))  # what follows a JPEG's end is ignored
    assert changed.stat().st_size == before.st_size
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert command(photos, "--out", out, *without(options), "--restart").returncode == 0
    ran = command(photos, "--out", out, *options, "--top-k", 3)
    assert ran.stdout.startswith("10 found, 1 labelled, 9 relabelled"), ran.stdout
    found = {row["path"]: row["embedding"] for row in read(embeddings).to_pylist()}
    assert np.allclose(found[changed.name], features_of(small_model, changed), atol=1e-4)


def test_a_young_file_waits_also_where_its_row_has_no_embedding(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert command(photos, "--out", out, *without(options)).returncode == 0
    before = Table(out).scan(["path", "label", "size_bytes", "mtime"])
    (photos / "0001.jpg").write_bytes((photos / "0002.jpg").read_bytes()[:300])  # half of it
    ran = command(photos, "--out", out, *options, "--settle", "1h")
    assert "left for the next run, changed too lately (--settle): 1" in ran.stderr
    assert ran.stdout.startswith("10 found, 9 labelled, 1 carried over"), ran.stdout
    assert Table(out).scan(["path", "label", "size_bytes", "mtime"]).equals(before)
    assert "0001.jpg" not in read(embeddings)["path"].to_pylist()


def test_a_young_file_of_another_model_s_table_is_labelled_as_it_is(
    photos: Path, small_model: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    """Its row may not be kept with the other fingerprint, nor labelled under its earlier size."""
    out = tmp_path / "l.parquet"
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert command(photos, "--out", out, *without(options)).returncode == 0
    photo(99).save(photos / "0001.jpg")
    photo(98).save(photos / "new.jpg")
    more = [*without(options), "--top-k", 2, "--settle", "1h"]
    ran = command(photos, "--out", out, *more)
    assert ran.returncode == 0
    size = dict(zip(*(Table(out).scan()[name].to_pylist() for name in ("path", "size_bytes")),
                    strict=True))  # fmt: skip
    assert size["0001.jpg"] == (photos / "0001.jpg").stat().st_size
    assert size["new.jpg"] == (photos / "new.jpg").stat().st_size
    assert command("verify", out).returncode == 0


def test_a_name_is_that_of_one_table_wherever_one_stands(
    photos: Path, tmp_path: Path, command: Command, options: list[Any], monkeypatch: Any
) -> None:
    embeddings = tmp_path / "embeddings"
    shutil.copytree(photos, tmp_path / "x" / "photos")
    shutil.copytree(photos, tmp_path / "y" / "photos")

    def in_folder(name: str, out: str) -> Any:
        absolute = [tmp_path / name / "photos", "--out", out, *options]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / name)
            return CliRunner().invoke(main, [str(word) for word in absolute])

    assert in_folder("x", "l.parquet").exit_code == 0
    refused = in_folder("y", "l.parquet")
    assert refused.exit_code == 5
    assert f"are those of {tmp_path}/x/l.parquet" in refused.stderr
    assert "nothing changed" in in_folder("x", str(tmp_path / "x" / "l.parquet")).stdout
    assert len(read(embeddings)) == 10


def test_a_job_that_ended_between_the_switches_is_not_labelled_again(
    photos: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any,
    options: list[Any],
) -> None:  # fmt: skip
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    arguments = (photos, "--out", out, *options, "--max-errors", 99)
    assert command(*arguments).returncode == 0
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    away = (photos / "0001.jpg").rename(tmp_path / "away.jpg")
    (photos / "0001.jpg").symlink_to(tmp_path / "nowhere.jpg")

    class Stop(BaseException):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finish.merging._merge_labels", stop)
        with pytest.raises(Stop):
            command(*arguments)
    (photos / "0001.jpg").unlink()
    away.rename(photos / "0001.jpg")
    assert command(*arguments).returncode in (0, 7)
    labels = Table(out).scan(filter=pads.field("status") == "ok")
    assert keys(read(embeddings)) == keys(labels)
    assert command(*arguments).returncode == 0
    assert_beside(out, embeddings)


def test_shards_that_are_lost_between_the_switches_are_planned_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    arguments = (photos, "--out", out, *options, "--max-errors", 99)

    class Stop(BaseException):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finish.merging._merge_labels", stop)
        with pytest.raises(Stop):
            command(*arguments)
    with Job(out).part_path(0).open("ab") as part:
        part.write(b"x")
    (photos / "0001.jpg").write_bytes(b"no photo any more")
    ran = command(*arguments)
    assert "shards that the embeddings were made of are not proven any more" in ran.stderr
    assert_beside(out, embeddings)
    assert command("verify", embeddings).returncode == 0


def test_a_place_that_is_lost_meanwhile_is_not_written_to(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, options: list[Any]
) -> None:
    out, embeddings = tmp_path / "l.parquet", tmp_path / "embeddings"
    really = merging._merge_beside

    def lost(run: Any, product: Any, job: Job, made: Any) -> None:
        shutil.rmtree(job.folder)
        really(run, product, job, made)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finish.merging._merge_beside", lost)
        ran = command(photos, "--out", out, *options)
    assert ran.returncode == 5, ran.stderr
    assert not out.exists()
    assert not embeddings.exists()


def test_a_link_that_leads_nowhere_and_a_name_that_is_too_long_are_refused(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in (("link", "leads nowhere"), ("x" * 245, "is too long")):
        ran = command(
            photos, "--out", tmp_path / "l", *without(options), "--embeddings", tmp_path / name
        )
        assert (ran.returncode, why in ran.stderr) == (2, True), ran.stderr


def test_who_holds_the_embeddings_is_said(
    photos: Path, tmp_path: Path, command: Command, options: list[Any]
) -> None:
    embeddings = tmp_path / "embeddings"
    with Job(embeddings).held():
        ran = command(photos, "--out", tmp_path / "l.parquet", *options)
    assert ran.returncode == 4
    assert f"another run is at work on the embeddings in {embeddings}" in ran.stderr


def test_a_repair_holds_keys_alone_of_all_rows(
    tmp_path: Path, command: Command, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All embeddings at once, put in order, were four times the folder's size."""
    monkeypatch.setitem(vars(EMBEDDINGS), "row_group_rows", 4)
    monkeypatch.setattr(Product, "file_rows", 16)
    photos, out, embeddings = tmp_path / "p", tmp_path / "l.parquet", tmp_path / "embeddings"
    assert command(make_photos(photos, 40), "--out", out, *options).returncode == 0
    before = read(embeddings)
    file = sorted(embeddings.iterdir())[0]
    data = bytearray(file.read_bytes())
    data[pq.read_metadata(file).row_group(1).column(6).data_page_offset + 60] ^= 255
    file.write_bytes(data)
    sorted_together, read_at_once = [], []
    really_sort, really_take = repair.sort_and_drop_repeated, Parts.take

    def sort(rows: pa.Table) -> pa.Table:
        sorted_together.append(rows.schema.names)
        return really_sort(rows)

    def take(parts: Parts, indices: np.ndarray) -> pa.Table:
        rows = really_take(parts, indices)
        read_at_once.append(sum(map(len, parts._read.values())))
        return rows

    monkeypatch.setattr(repair, "sort_and_drop_repeated", sort)
    monkeypatch.setattr(Parts, "take", take)
    ran = command("verify", embeddings, "--repair")
    assert (ran.returncode, "kept 36 of 40 rows" in ran.stdout) == (0, True), ran.stdout
    assert sorted_together == [["root", "path", "is_failed", "number"]]
    assert max(read_at_once) <= 12, "neighbouring row groups"
    expected = pa.concat_tables([before.slice(0, 4), before.slice(8)])
    assert read(embeddings).equals(expected)
