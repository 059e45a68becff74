"""Photos that move or are copied: what is known of their bytes is not computed again, and nothing is
taken for known that is not.
"""

import json
import os
import random
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline import Table
from pipeline.console import Console
from pipeline.load.reuse import Copy, Reuse
from pipeline.run import run
from pipeline.settings import Settings
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.product import Product
from tests.forking import Running
from tests.helpers import Command, make_photos, photo
from tests.test_crash import Crash, Disk
from tests.test_embeddings import assert_beside
from tests.test_relabel import other_words

AS_MADE = ["run_id", "labelled_at"]


@pytest.fixture
def options(small_model: Path) -> list[Any]:
    how = ["--precision", "fp32", "--workers", 0, "--audit", 0]
    return ["--model", small_model, *how, "--shard-size", 8, "--batch-size", 4]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was decoded since it was last cleared, by index; without workers."""
    from pipeline.load.image_dataset import decode_image

    indices: list[int] = []

    def decode(index: int, *arguments: Any, **named: Any) -> Any:
        indices.append(index)
        return decode_image(index, *arguments, **named)

    monkeypatch.setattr("pipeline.load.image_dataset.decode_image", decode)
    return indices


def assert_equal(out: Path, fresh: Path) -> None:
    """The same rows but for who labelled when; and the same probabilities but for the batches that
    images were in.
    """
    ours, theirs = (Table(place).scan().drop_columns(AS_MADE) for place in (out, fresh))
    exact = [name for name in ours.column_names if name not in ("probability", "top_k")]
    for name in exact:
        assert ours[name].equals(theirs[name]), name
    for a, b in zip(ours["top_k"].to_pylist(), theirs["top_k"].to_pylist(), strict=True):
        for one, other in zip(a or [], b or [], strict=True):
            assert one["class_id"] == other["class_id"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def same_size(path: Path, seed: int, size: int) -> None:
    """Another photo in a file of a given size."""
    photo(seed, 24, 20).save(path, quality=60)
    data = path.read_bytes()
    assert len(data) <= size
    path.write_bytes(data + bytes(size - len(data)))


@pytest.mark.parametrize(("slash", "embeddings"), [("", False), ("/", True)])
def test_what_moves_or_is_copied_is_not_decoded_again(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    slash: str,
    embeddings: bool,
) -> None:
    monkeypatch.setattr(Product, "file_rows", 7)
    monkeypatch.setitem(vars(EMBEDDINGS), "row_group_rows", 4)
    photos, beside = make_photos(tmp_path / "photos", 20), tmp_path / "embeddings"
    make_photos(photos / "sub", 9)
    ours = [*options, "--out", f"{tmp_path / 'ours'}{slash}"]
    ours += ["--embeddings", beside] if embeddings else []

    def night(line: str, n_decoded: int) -> None:
        decoded.clear()
        ran = command(photos, *ours)
        assert ran.returncode == 0, ran.stderr
        assert line in ran.stdout
        assert len(decoded) == n_decoded
        fresh = command(photos, *options, "--restart", "--out", f"{tmp_path / 'fresh'}{slash}")
        assert fresh.returncode == 0
        assert_equal(tmp_path / "ours", tmp_path / "fresh")
        if embeddings:
            assert_beside(tmp_path / "ours", beside)

    night("29 found, 29 labelled, 0 carried over", 29)
    photos = photos.rename(tmp_path / "a name that sorts first")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.load.image_dataset.read_image", None)  # nothing is read
        plan = command("plan", photos, *ours)
        assert f"moved: {tmp_path}/photos -> {photos}: 29 rows go along" in plan.stdout
        decoded.clear()
        ran = command(photos, *ours)
        assert "29 found, 0 labelled, 29 carried over" in ran.stdout, ran.stderr
        assert "29 rows go along" in ran.stderr
    night("nothing changed", 0)
    (photos / "sub").rename(photos / "another")
    plan = command("plan", photos, *ours)
    assert "9  reused      of the new ones" in plan.stdout
    night("29 found, 0 labelled, 9 reused, 20 carried over, 9 gone", 0)
    for place in range(6):
        shutil.copy(photos / f"{place:04}.jpg", photos / f"copy {place}.jpg")
    night("35 found, 0 labelled, 6 reused, 29 carried over", 0)
    for place in range(6):
        path = photos / f"copy {place}.jpg"
        same_size(path, 700 + place, path.stat().st_size)
        os.utime(path, (1, 1))
    night("35 found, 6 labelled, 29 carried over", 6)
    for place in range(6):  # by other names, so that they are new
        path = photos / f"copy {place}.jpg"
        size = path.stat().st_size
        path.unlink()
        same_size(photos / f"other {place}.jpg", 800 + place, size)
    night("35 found, 6 labelled, 29 carried over, 6 gone", 6)
    for place in (tmp_path / "ours", *([beside] if embeddings else [])):
        verified = command("verify", place)
        assert verified.returncode == 0, verified.stdout
    assert "nothing changed" in command(photos, *ours).stdout


@pytest.mark.parametrize("slash", ["", "/"], ids=["file", "folder"])
def test_roots_change_their_order_and_what_changed_meanwhile_is_labelled(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    slash: str,
) -> None:
    monkeypatch.setattr(Product, "file_rows", 5)
    monkeypatch.setitem(vars(EMBEDDINGS), "row_group_rows", 4)
    one, two, three = (make_photos(tmp_path / name, 8) for name in ("one", "two", "three"))
    (two / "broken.jpg").write_bytes(b"no photo")
    ours = [*options, "--embeddings", tmp_path / "embeddings", "--max-errors", 9]
    ours += ["--out", f"{tmp_path / 'ours'}{slash}"]
    assert command(one, two, three, *ours).returncode == 0
    three, one = three.rename(tmp_path / "a"), one.rename(tmp_path / "z")
    photo(90).save(one / "new.jpg")
    photo(91).save(one / "0003.jpg")
    (three / "0002.jpg").unlink()
    decoded.clear()
    ran = command(one, two, three, *ours)
    assert ran.returncode == 0, ran.stderr
    assert "25 found, 2 labelled, 23 carried over (1 of them failed earlier), 1 gone" in ran.stdout
    assert "14 rows go along" in ran.stderr
    assert len(decoded) == 2
    fresh = [*options, "--out", f"{tmp_path / 'fresh'}{slash}", "--max-errors", 9]
    assert command(one, two, three, *fresh).returncode == 0
    assert_equal(tmp_path / "ours", tmp_path / "fresh")
    assert_beside(tmp_path / "ours", tmp_path / "embeddings")
    for place in (tmp_path / "ours", tmp_path / "embeddings"):
        assert command("verify", place).returncode == 0
    assert "nothing changed" in command(one, two, three, *ours).stdout


def test_a_root_that_is_still_named_has_not_moved(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    assert command(photos, *options, "--out", out).returncode == 0
    moved = photos.rename(tmp_path / "moved")
    photos.mkdir()
    decoded.clear()
    ran = command(photos, moved, *options, "--out", out)
    assert ran.returncode == 7, "one of them holds no image any more"
    assert "5 found, 0 labelled, 5 reused, 0 carried over, 5 kept unseen" in ran.stdout
    assert not decoded


def test_the_folder_of_an_archive_that_is_named_has_not_moved(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int]
) -> None:
    """It lists nothing, since the archive has not changed; and a copy of that is elsewhere."""
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "l.parquet"
    one.mkdir()
    with tarfile.open(one / "six.tar", "w") as archive:
        for path in sorted(make_photos(tmp_path / "photos", 6).iterdir()):
            archive.add(path, path.name)
    assert command(one / "six.tar", *options, "--out", out).returncode == 0
    shutil.copytree(one, two)
    decoded.clear()
    ran = command(one / "six.tar", two, *options, "--out", out)
    assert "12 found, 0 labelled, 6 reused, 6 carried over" in ran.stdout, ran.stderr
    assert not decoded
    fresh = tmp_path / "fresh.parquet"
    assert command(one / "six.tar", two, *options, "--out", fresh).returncode == 0
    assert_equal(out, fresh)


@pytest.mark.parametrize("what", ["disk", "list"])
def test_what_is_away_has_not_moved_to_where_a_copy_of_it_is(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int], what: str
) -> None:
    """A disk that lies in a PATH and is not mounted, or what a list named that is empty: a copy may
    lack what only it has.
    """
    data, backup, out = tmp_path / "cwd", tmp_path / "backup", tmp_path / "l.parquet"
    disk = make_photos(data / "disk", 6)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"disk/{path.name}\n" for path in sorted(disk.iterdir())))
    before = [disk] if what == "disk" else ["--files-from", names]
    assert command(*before, *options, "--out", out).returncode == 0
    place = backup if what == "disk" else backup / "disk"
    shutil.copytree(disk, place)
    for name in ("0000.jpg", "0001.jpg"):
        (place / name).unlink()
    if what == "disk":
        job = Job(out)
        job.add_to_history(job.history()[-1], [[str(disk), ""]])  # as if it were a mount point
        shutil.rmtree(disk)
        disk.mkdir()
        make_photos(data / "others", 2)
        now = [data, backup]
    else:
        names.write_text("")
        now = [backup, "--files-from", names]
    decoded.clear()
    ran = command(*now, *options, "--out", out)
    assert ran.returncode == 7, ran.stdout
    assert "4 reused, 0 carried over, 6 kept unseen" in ran.stdout
    assert len(decoded) == (2 if what == "disk" else 0)


def test_folders_whose_files_are_all_alike_are_told_by_their_bytes(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int]
) -> None:
    """Frames of one size, unpacked with one time: under another root they look the same."""
    for name, first in (("one", 0), ("two", 100)):
        (tmp_path / name).mkdir()
        for place in range(9):
            path = tmp_path / name / f"{place:04}.bmp"
            photo(first + place).save(path)
            os.utime(path, (1, 1))
    out, fresh = tmp_path / "l.parquet", tmp_path / "fresh.parquet"
    assert command(tmp_path / "one", *options, "--out", out).returncode == 0
    decoded.clear()
    ran = command(tmp_path / "two", *options, "--out", out)
    assert "9 found, 9 labelled, 0 carried over, 9 gone" in ran.stdout
    assert "go along" not in ran.stderr
    assert len(decoded) == 9
    assert command(tmp_path / "two", *options, "--out", fresh).returncode == 0
    assert_equal(out, fresh)
    decoded.clear()
    (tmp_path / "two").rename(tmp_path / "three")
    ran = command(tmp_path / "three", *options, "--out", out)
    assert "9 found, 0 labelled, 9 reused, 0 carried over, 9 gone" in ran.stdout
    assert not decoded


@pytest.mark.parametrize("workers", [0, 2])
def test_exact_copies_of_one_run_are_decoded_once(
    tmp_path: Path, command: Command, options: list[Any], workers: int
) -> None:
    photos, out = make_photos(tmp_path / "photos", 9), tmp_path / "l.parquet"
    (photos / "broken.jpg").write_bytes(b"no photo")
    for place in range(3):
        shutil.copytree(photos, tmp_path / f"more {place}")
    for place in range(3):
        (tmp_path / f"more {place}").rename(photos / f"more {place}")
    where = ["--workers", workers, "--out", out, "--max-errors", 9, "--embeddings", tmp_path / "e"]
    ran = command(photos, *options, *where)
    assert ran.returncode == 0, ran.stderr
    assert (
        "40 found, 9 labelled, 27 reused, 0 carried over, 4 failed (not_an_image 4)" in ran.stdout
    )
    table = pq.read_table(out)
    assert table["content_hash"].null_count == 0
    assert len(set(table["content_hash"].to_pylist())) == 10
    told = table.group_by("content_hash").aggregate([("label", "count_distinct")])
    assert set(told["label_count_distinct"].to_pylist()) <= {0, 1}
    once = tmp_path / "once.parquet"
    shutil.move(photos / "more 1", tmp_path / "one")
    assert command(tmp_path / "one", *options, "--out", once, "--max-errors", 9).returncode == 0
    alone = {row["content_hash"]: row["label"] for row in pq.read_table(once).to_pylist()}
    assert all(row["label"] == alone[row["content_hash"]] for row in table.to_pylist())
    for place in (out, tmp_path / "e"):
        assert command("verify", place).returncode == 0
    assert_beside(out, tmp_path / "e")


def test_a_reused_row_keeps_who_labelled_it_and_a_run_says_how_many(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    metrics = tmp_path / "m.prom"
    ours = [*options, "--out", out]
    assert command(photos, *ours, "--precision", "fp32").returncode == 0
    (photos / "sub").mkdir()
    for path in photos.glob("*.jpg"):
        path.rename(photos / "sub" / path.name)
    before = Table(out).record
    plan = json.loads(command("plan", photos, *ours, "--log-json").stdout.splitlines()[-1])
    assert plan["counts"]["reused"] == 5
    ran = command(photos, *ours, "--precision", "bf16", "--metrics", metrics)
    assert "5 found, 0 labelled, 5 reused, 0 carried over, 5 gone" in ran.stdout
    assert "images/s" not in ran.stdout
    assert not decoded[5:]
    after = Table(out).record
    assert set(Table(out).scan()["run_id"].to_pylist()) == {before.run_id} != {after.run_id}
    assert after.made_by == before.made_by, "bf16 labelled nothing"
    assert 'outcome="reused"} 5' in metrics.read_text()
    assert (Job(out).read_run() or {})["counts"]["reused"] == 5


def test_the_audit_labels_reused_rows_too(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    assert command(photos, *options, "--out", out).returncode == 0
    (photos / "0001.jpg").rename(photos / "else.jpg")
    ran = command(photos, *options, "--out", out, "--audit", 16)
    assert "audit: 1 row labelled again" in ran.stderr


def test_no_copy_is_believed_whose_row_has_other_bytes(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos, out, fresh = make_photos(tmp_path / "photos", 12), tmp_path / "l", tmp_path / "fresh"
    for place in range(12):  # all of one size
        same_size(photos / f"{place:04}.jpg", place, 2_000)
    ours = [*options, "--embeddings", tmp_path / "e", "--out", out]
    assert command(photos, *ours).returncode == 0
    for place in range(12, 24):
        same_size(photos / f"{place:04}.jpg", place, 2_000)
    assert command(photos, *options, "--out", fresh).returncode == 0
    lies = random.Random(1)

    def find(self: Reuse, index: int, number: int) -> Copy | None:
        digits = f"{number:032x}"
        if lies.random() < 0.3:
            return Copy(index, digits, donor=lies.randrange(12))
        if lies.random() < 0.5:
            return Copy(
                index, digits, of=lies.choice([place for place in range(12) if place != index])
            )
        return None

    decoded.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Reuse, "find", find)
        ran = command(photos, *ours, "--workers", 0)
    assert ran.returncode == 0, ran.stderr
    assert "24 found, 12 labelled, 12 carried over" in ran.stdout
    assert_equal(out, fresh)
    assert_beside(out, tmp_path / "e")


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 6))]
)
def test_nights_of_moves_end_in_the_table_of_a_fresh_run(
    tmp_path: Path, command: Command, options: list[Any], seed: int
) -> None:
    """Files of one size with few different times, moved, copied, swapped and replaced at random."""
    chance = random.Random(seed)
    folder = tmp_path / "root 0"
    folder.mkdir()
    made = 0

    def write(path: Path) -> None:
        nonlocal made
        path.parent.mkdir(exist_ok=True)
        same_size(path, made, 2_000)
        made += 1
        # Unlike any it had: what has its name, size and time is taken for unchanged.
        os.utime(path, ns=(0, chance.choice([1, made]) * 10**9 + made))

    for place in range(12):
        write(folder / f"{place}.jpg")
    out = tmp_path / "ours"
    for night in range(5):
        files = sorted(folder.rglob("*.jpg"))
        for _ in range(chance.randrange(4)):
            path = chance.choice(files)
            target = folder / chance.choice(["", "a", "b"]) / f"{chance.randrange(30)}.jpg"
            target.parent.mkdir(exist_ok=True)
            what = chance.choice(["move", "copy", "copy2", "write"])
            if what == "write":
                write(target)
            elif path.exists() and path != target:
                {"move": shutil.move, "copy": shutil.copy, "copy2": shutil.copy2}[what](
                    path, target
                )
        if chance.random() < 0.5:
            folder = folder.rename(tmp_path / f"root {chance.choice('abc')}{night}")
        fresh = tmp_path / f"fresh {night}"
        assert command(folder, *options, "--out", out).returncode == 0
        assert command(folder, *options, "--out", fresh).returncode == 0
        assert_equal(out, fresh)
    assert command("verify", out).returncode == 0


def test_photos_that_were_packed_keep_their_labels(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 6), tmp_path / "l.parquet"
    ours = [*options, "--out", out, "--image-column", "image", "--key-column", "id"]
    ours += ["--workers", 1]  # who reads tables keeps them open
    assert command(photos, *ours).returncode == 0
    files = sorted(photos.glob("*.jpg"))
    with tarfile.open(photos / "three.tar", "w") as archive:
        for path in files[:3]:
            archive.add(path, path.name)
    images = {"id": ["x", "y"], "image": [path.read_bytes() for path in files[3:5]]}
    pq.write_table(pa.table(images), photos / "two.parquet")
    for path in files[:5]:
        path.unlink()
    ran = command(photos, *ours)
    # The size of an image in a table is not known before it is read: those are decoded.
    assert "6 found, 2 labelled, 3 reused, 1 carried over, 5 gone" in ran.stdout, ran.stderr
    moved = tmp_path / "moved"
    (photos / "sub").mkdir(parents=True)
    for name in ("three.tar", "two.parquet"):
        (photos / name).rename(photos / "sub" / name)
    ran = command(photos, *ours)
    assert "6 found, 0 labelled, 5 reused, 1 carried over, 5 gone" in ran.stdout, ran.stderr
    photos.rename(moved)
    ran = command(moved, *ours)
    assert "6 found, 0 labelled, " in ran.stdout, ran.stderr
    fresh = tmp_path / "fresh.parquet"
    columns = ["--workers", 1, "--image-column", "image", "--key-column", "id"]
    assert command(moved, *options, *columns, "--out", fresh).returncode == 0
    assert_equal(out, fresh)


def test_a_root_moves_in_the_night_in_which_the_head_changes(
    tmp_path: Path,
    command: Command,
    options: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = (make_photos(tmp_path / name, 6) for name in ("one", "two"))
    ours = [*options, "--embeddings", tmp_path / "e", "--out", tmp_path / "ours"]
    assert command(one, two, *ours).returncode == 0
    one = one.rename(tmp_path / "zz")
    words = ["--labels", other_words(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.load.image_dataset.read_image", None)
        ran = command(one, two, *ours, *words)
    assert ran.returncode == 0, ran.stderr
    assert "12 found, 0 labelled, 12 relabelled from embeddings, 0 carried over" in ran.stdout
    assert command(one, two, *options, "--out", tmp_path / "fresh", *words).returncode == 0
    assert_equal(tmp_path / "ours", tmp_path / "fresh")
    assert_beside(tmp_path / "ours", tmp_path / "e")


def test_copies_of_one_night_say_nothing_of_what_made_the_table_before(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    shutil.copy(photos / "0001.jpg", photos / "copy.jpg")
    ours = [photos, *options, "--embeddings", tmp_path / "e", "--out", out]
    assert command(*ours, "--precision", "bf16").returncode == 0
    assert Table(out).record.precision == "bf16"
    ran = command(*ours, "--restart")
    assert "6 found, 5 labelled, 1 reused, 0 carried over" in ran.stdout
    (photos / "0001.jpg").unlink()
    assert command(*ours, "--precision", "bf16", "--restart").returncode == 0
    shutil.copy(photos / "copy.jpg", photos / "0001.jpg")
    ran = command(*ours[:-4], "--out", out, "--top-k", 2)
    assert "6 found, 5 labelled, 1 reused, 0 carried over" in ran.stdout
    assert Table(out).record.precision == "fp32"


def test_of_the_shards_that_copies_are_of_no_more_is_kept_than_those(
    tmp_path: Path, command: Command, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = make_photos(tmp_path / "photos", 32), tmp_path / "l.parquet"
    (photos / "zz").mkdir()
    for place in range(0, 32, 4):
        shutil.copy(photos / f"{place:04}.jpg", photos / "zz" / f"{place}.jpg")
    put_together = list[int]()

    class Arrow:
        def __getattr__(self, name: str) -> Any:
            return getattr(pa, name)

        def concat_tables(self, tables: list[pa.Table]) -> pa.Table:
            put_together.append(sum(map(len, tables)))
            return pa.concat_tables(tables)

    monkeypatch.setattr("pipeline.label.shard_writer.pa", Arrow())
    ran = command(photos, *options, "--embeddings", tmp_path / "e", "--out", out)
    assert "40 found, 32 labelled, 8 reused" in ran.stdout
    assert max(put_together) == 8, "a shard, and not those of all copies"
    assert_beside(out, tmp_path / "e")


def test_labels_of_another_model_are_not_reused(
    tmp_path: Path, command: Command, options: list[Any], decoded: list[int]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    assert command(photos, *options, "--out", out).returncode == 0
    (photos / "0001.jpg").rename(photos / "else.jpg")
    decoded.clear()
    ran = command(photos, *options, "--out", out, "--top-k", 2)
    assert "5 found, 5 labelled, 0 carried over, 1 gone" in ran.stdout
    assert len(decoded) == 5


def test_a_disk_that_moved_is_missed_below_its_new_place(
    tmp_path: Path, command: Command, options: list[Any]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 6), tmp_path / "l.parquet"
    make_photos(photos / "disk", 4)
    assert command(photos, *options, "--out", out).returncode == 0
    job = Job(out)
    job.add_to_history(job.history()[-1], [[str(photos), "disk"]])  # as if it were a mount point
    moved = photos.rename(tmp_path / "moved")
    shutil.rmtree(moved / "disk")
    (moved / "disk").mkdir()
    ran = command(moved, *options, "--out", out)
    assert ran.returncode == 7, ran.stderr
    assert "was a mount point and is none now" in ran.stderr
    assert "6 found, 0 labelled, 6 carried over, 4 kept unseen" in ran.stdout
    assert {row["root"] for row in Table(out).scan().to_pylist()} == {str(moved)}


def test_a_damaged_file_of_donors_is_planned_again(
    tmp_path: Path, command: Command, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = make_photos(tmp_path / "photos", 5), tmp_path / "l.parquet"
    assert command(photos, *options, "--out", out).returncode == 0
    (photos / "0001.jpg").rename(photos / "else.jpg")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.label.local.Reuse", None)
        with pytest.raises(TypeError):
            command(photos, *options, "--out", out)
    donors = Job(out).folder / "donors.arrow"
    donors.write_bytes(donors.read_bytes()[:-1])
    ran = command(photos, *options, "--out", out)
    assert "its plan is not as it was written" in ran.stderr
    assert "5 found, 0 labelled, 1 reused, 4 carried over, 1 gone" in ran.stdout
    assert not donors.exists()


@pytest.mark.slow
@pytest.mark.parametrize("attempts", [2, pytest.param(6, marks=pytest.mark.soak)])
def test_a_reuse_that_is_killed_goes_on(
    tmp_path: Path,
    command: Command,
    starting: Callable[..., Running],
    options: list[Any],
    attempts: int,
) -> None:
    """kill -9 at random moments of a night in which a folder moved and photos were copied; two
    times three of them, six times in soak.
    """
    photos, out = make_photos(tmp_path / "photos", 60), tmp_path / "l.parquet"
    ours = [*options, "--workers", 2, "--embeddings", tmp_path / "e", "--out", out]
    assert command(photos, *ours, "--workers", 0).returncode == 0
    (photos / "sub").mkdir()
    for place in range(40):
        (photos / f"{place:04}.jpg").rename(photos / "sub" / f"{place:04}.jpg")
    for place in range(40, 60):
        shutil.copy(photos / f"{place:04}.jpg", photos / f"copy {place}.jpg")
    make_photos(photos / "new", 30)
    shutil.copytree(photos / "new", photos / "new again")
    saved = tmp_path / "saved"
    state = [out, tmp_path / "e", Job(out).folder, Job(tmp_path / "e").folder]
    saved.mkdir()
    for path in state:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, saved / path.name)
    assert command(photos, *options, "--out", tmp_path / "fresh").returncode == 0
    chance, n_killed = random.Random(0), 0
    for attempt in range(attempts):
        for path in state:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            (shutil.copytree if (saved / path.name).is_dir() else shutil.copy)(
                saved / path.name, path
            )
        for _ in range(3):
            with starting(photos, *ours) as running:
                plan = Job(out).folder / "plan.arrow"
                deadline = time.monotonic() + 60
                while not plan.exists() and running.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(chance.random() * (0.4 + attempt / 5))
                n_killed += running.poll() is None
                running.send_signal(signal.SIGKILL)
        ran = command(photos, *ours, "--workers", 0)
        assert ran.returncode == 0, ran.stderr
        assert_equal(out, tmp_path / "fresh")
        assert_beside(out, tmp_path / "e")
        assert command("verify", out).returncode == 0
    assert n_killed > attempts


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_a_crash_at_each_change_to_the_disk_while_roots_move(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """At every fourth and the last; at each in soak."""
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")  # as in test_crash.py
    start, saved = tmp_path / "start", tmp_path / "saved"

    def night(*names: str) -> None:
        settings = Settings(
            paths=tuple(start / name for name in names), out=start / "labels", is_dataset=True,
            embeddings=start / "embeddings", model=str(small_model), workers=0, shard_size=4,
            precision="fp32", audit=0,
        )  # fmt: skip
        run(settings, Console())

    make_photos(start / "one", 5)
    make_photos(start / "two", 5)
    night("one", "two")
    (start / "one").rename(start / "zz")
    (start / "two" / "0001.jpg").rename(start / "zz" / "moved.jpg")
    shutil.copy(start / "zz" / "0000.jpg", start / "two" / "copy.jpg")
    photo(90).save(start / "two" / "new.jpg")
    shutil.copytree(start, saved, symlinks=True)
    with monkeypatch.context() as patch:
        disk = Disk(patch, None, False)
        night("zz", "two")
    expected = Table(start / "labels").scan().drop_columns(AS_MADE)
    assert len(expected) == 12
    last = len(disk.changes) - 1
    for point in sorted({*range(0, last, every), last}):
        shutil.rmtree(start)
        shutil.copytree(saved, start, symlinks=True)
        with monkeypatch.context() as patch:
            Disk(patch, point, False)
            with pytest.raises(Crash):
                night("zz", "two")
        night("zz", "two")
        assert Table(start / "labels").scan().drop_columns(AS_MADE).equals(expected)
        assert_beside(start / "labels", start / "embeddings")
