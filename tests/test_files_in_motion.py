"""Files in motion: gone, cut, replaced or still growing between the scan and the reading."""

import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image

from pipeline.label import local
from tests.helpers import Command, make_photos, photo, rows


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Make something happen once: after the plan is frozen, before the first image is read."""
    real = local.label_shards

    def arrange(happen: Callable[[], None]) -> None:
        def label_shards(*arguments: Any, **options: Any) -> Any:
            happen()
            monkeypatch.setattr(local, "label_shards", real)
            return real(*arguments, **options)

        monkeypatch.setattr(local, "label_shards", label_shards)

    return arrange


def test_files_that_change_between_scan_and_reading(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, between: Any
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (
        photos,
        "--out",
        out,
        "--model",
        small_model,
        "--max-errors",
        "100%",
        "--audit",
        10,
    )

    def happen() -> None:
        (photos / "0000.jpg").unlink()
        data = (photos / "0001.jpg").read_bytes()
        (photos / "0001.jpg").write_bytes(data[: len(data) // 2])
        photo(77, 300, 200).save(photos / "0002.jpg")
        (photos / "0003.jpg").unlink()
        os.mkfifo(photos / "0003.jpg")
        (photos / "0004.jpg").unlink()
        (photos / "0004.jpg").mkdir()
        (photos / "0005.jpg").unlink()
        (photos / "0005.jpg").symlink_to(photos / "0005.jpg")
        (photos / "0006.jpg").write_bytes(b"")

    between(happen)
    ran = command(*arguments)
    assert ran.returncode == 0, ran.stderr
    first = {row["path"]: row for row in rows(out)}
    codes = {path: row["error_code"] for path, row in first.items() if row["error_code"]}
    assert codes == {
        "0000.jpg": "not_found", "0001.jpg": "truncated", "0003.jpg": "not_a_file", "0004.jpg": "not_a_file",
        "0005.jpg": "read_error", "0006.jpg": "empty_file",
    }  # fmt: skip
    assert len(first) == 10
    assert first["0002.jpg"]["width"] == 300, "what was read is labelled"
    # What was planned does not fit what is there now, and so the next run looks again.
    ran = command(*arguments)
    assert ran.returncode == 0, ran.stderr
    second = {row["path"]: row for row in rows(out)}
    assert sorted(first.keys() - second.keys()) == ["0000.jpg", "0004.jpg"], "a folder is no image"
    assert "8 found, 5 changed, 3 carried, 2 gone" in ran.stderr
    assert second["0002.jpg"]["size_bytes"] == (photos / "0002.jpg").stat().st_size


def test_a_folder_that_disappears_half_way(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, between: Any
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    between(lambda: shutil.rmtree(photos))
    ran = command(*arguments)
    assert ran.returncode == 3
    assert "10 failed (not_found 10)" in ran.stdout
    before = out.read_bytes()
    ran = command(*arguments)
    assert (ran.returncode, f"{photos} does not exist" in ran.stderr) == (2, True)
    make_photos(photos, 7)
    make_photos(photos / "more", 3)
    assert out.read_bytes() == before
    assert "10 found, 10 labelled" in command(*arguments).stdout


def test_another_folder_without_images_empties_no_table(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, empty = tmp_path / "l.parquet", tmp_path / "empty"
    empty.mkdir()
    options = ("--out", out, "--model", small_model)
    assert command(photos, *options).returncode == 0
    before = out.read_bytes()
    for words in ((), ("plan",), ("--restart",)):
        ran = command(*words, empty, *options)
        assert f"no image was found, and all 10 rows of {out} would go" in ran.stderr
        assert ran.returncode == 5
    ran = command(make_photos(tmp_path / "fresh", 2), *options, "--settle", "1h")
    assert "all 2 images changed too lately to be labelled (--settle)" in ran.stderr
    assert ran.returncode == 5
    assert out.read_bytes() == before
    assert "10 gone" in command(empty, *options, "--forget", photos).stdout
    assert rows(out) == []


@pytest.mark.parametrize("how", [("--restart",), ("--top-k", "3")])
def test_where_no_row_may_stay_nothing_is_left_for_later(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """A photo that changed lately keeps its row until then, and this row may not be kept. In an archive
    that grew the new ones are labelled, too: it would pass for unchanged, once the others are.
    """
    out, archive = tmp_path / "l.parquet", photos / "more.tar"
    images = sorted(photos.rglob("*.jpg"))
    with tarfile.open(archive, "w") as file:
        file.add(images[0], "0.jpg")
    for path in (*images, archive):
        os.utime(path, (1e9, 1e9))
    options = ("--out", out, "--model", small_model)
    assert command(photos, *options).returncode == 0
    os.utime(images[1])
    with tarfile.open(archive, "a") as file:
        file.add(images[1], "1.jpg")
    assert "left for the next run" in command("plan", photos, *options, "--settle", "1h").stdout
    ran = command(photos, *options, *how, "--settle", "1h")
    assert ran.returncode == 0
    assert "12 found, 10 labelled, 2 reused" in ran.stdout  # those in the archive are copies
    assert {row["path"] for row in rows(out)} >= {"more.tar/0.jpg", "more.tar/1.jpg"}


def test_a_root_that_is_empty_all_at_once_keeps_its_rows(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    """The folder of a disk that is not mounted tonight."""
    other, out = make_photos(tmp_path / "other", 2), tmp_path / "l.parquet"
    arguments = (photos, other, "--out", out, "--model", small_model)
    assert command(*arguments).returncode == 0
    before = rows(out)
    photos.rename(tmp_path / "unmounted")
    photos.mkdir()
    (photos / "lost+found").mkdir()
    message = (
        f"{photos} holds no image any more, as if nothing were mounted there; the rows the table "
        "has of it are kept"
    )
    for ran in (command(*arguments), command("plan", *arguments)):
        assert message in ran.stderr + ran.stdout
        assert ran.returncode == (0 if "plan" in ran.args else 7)
    assert rows(out) == before
    (other / "0001.jpg").unlink()
    ran = command(*arguments)
    assert "1 found, 0 labelled, 1 carried over, 10 kept unseen, 1 gone" in ran.stdout
    assert ran.returncode == 7
    shutil.rmtree(photos)
    (tmp_path / "unmounted").rename(photos)
    assert "11 found, all carried over" in command(*arguments).stdout
    shutil.rmtree(photos)
    photos.mkdir()
    before = rows(out)
    ran = command(*arguments, "--restart")
    assert ran.returncode == 5, "what is not there cannot be labelled again"
    assert "10 rows of" in ran.stderr
    assert rows(out) == before
    ran = command(*arguments, "--forget", photos)
    assert ran.stdout.startswith("1 found, 0 labelled, 1 carried over, 10 gone"), (
        "told to, it drops them"
    )
    assert ran.returncode == 0
    assert command(*arguments).returncode == 0, "and what is forgotten is no news the night after"


def test_what_is_no_file_is_never_opened(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    folder = make_photos(tmp_path / "p", 2)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")  # has no end
    (folder / "tty.jpg").symlink_to("/dev/tty")
    (folder / "fifo-link.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
        ran = command(
            folder, "--out", tmp_path / "l.parquet", "--model", small_model, "--max-errors", "100%"
        )
    assert ran.returncode == 0
    assert "7 found" in ran.stdout
    assert "5 failed (not_a_file 5)" in ran.stdout


def test_the_same_photo_through_several_roots_is_one_row(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to(photos / "more")
    out = tmp_path / "l.parquet"
    ran = command(
        photos, photos / "more", tmp_path / "alias", photos, "--out", out, "--model", small_model
    )
    assert ran.stdout.startswith("10 found, 10 labelled")
    table = rows(out)
    assert len({(row["root"], row["path"]) for row in table}) == len(table) == 10
    assert {row["root"] for row in table} == {str(photos)}
    assert command("verify", out).returncode == 0


ODD_NAMES = [
    b"new\nline.jpg", b"tab\there.jpg", b"quote'\".jpg", b"back\\slash.jpg", "🦊 fox.jpg".encode(), b"caf\xe9.jpg",
    b"\xff\xfe.jpg", b" space .jpg", b"-rf.jpg", b"$(touch hacked).jpg", b"%s%n.jpg", b"a" * 251 + b".jpg",
    b"\x1b[31mred.jpg", b";drop table.jpg", "e\u0301.jpg".encode(), "\u00e9.jpg".encode(), b"null\\x00.jpg",
]  # fmt: skip


def test_odd_names_come_through_whole(small_model: Path, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for seed, name in enumerate(ODD_NAMES):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            photo(seed).save(file, "JPEG")
    out = tmp_path / "l.parquet"
    arguments = (folder, "--out", out, "--model", small_model)
    assert f"{len(ODD_NAMES)} found, {len(ODD_NAMES)} labelled" in command(*arguments).stdout
    assert "no image decoded" in command(*arguments).stdout
    table = rows(out)
    names = {
        row["path_bytes"] if row["path_bytes"] is not None else row["path"].encode()
        for row in table
    }
    assert names == set(ODD_NAMES)
    assert len({row["path"] for row in table}) == len(ODD_NAMES)
    in_duckdb = duckdb.sql(
        f"SELECT count(DISTINCT path) FROM '{out}' WHERE status = 'ok'"
    ).fetchall()
    assert in_duckdb == [(len(ODD_NAMES),)]
    assert not (folder / "hacked").exists()


def test_a_photo_still_being_written_is_labelled_once_it_is_whole(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    folder, out = make_photos(tmp_path / "p", 2), tmp_path / "l.parquet"
    for path in folder.iterdir():
        os.utime(path, (1000, 1000))
    growing = folder / "growing.jpg"
    Image.effect_noise((200, 200), 90).convert("RGB").save(growing)
    data = growing.read_bytes()
    growing.write_bytes(data[: len(data) // 2])
    arguments = (folder, "--out", out, "--model", small_model, "--settle", "10m")
    assert "2 found, 2 labelled" in command(*arguments).stdout
    growing.write_bytes(data)
    os.utime(growing, (2000, 2000))
    assert "3 found, 1 labelled, 2 carried over, 0 failed" in command(*arguments).stdout
