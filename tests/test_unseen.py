"""What is away for a night under a name that is still there: no label of it is lost, and the exit
code says so.
"""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.plan import LISTING
from pipeline.find import packed
from pipeline.find import scan as scanning
from pipeline.find.overlap import Places, empty_roots, lies_in
from pipeline.find.scan import scan
from pipeline.find.selection import Selection
from tests.helpers import Command, make_photos, photo, rows
from tests.small_disks import with_mount
from tests.test_nights import labels

QUICK = ("--workers", 0, "--audit", 0)  # for a handful of photos


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Four photos on a disk that links lead to."""
    return make_photos(tmp_path / "disk", 4)


def unmount(disk: Path) -> Path:
    return disk.rename(disk.with_name("away"))


# -- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [False, True])
def test_a_path_that_is_a_link_to_what_is_away(
    photos: Path, disk: Path, small_model: Path, command: Command, tmp_path: Path, outer: bool
) -> None:
    """Alone, and in another PATH that lists it as a link."""
    link, out = (photos if outer else tmp_path) / "nas", tmp_path / "l.parquet"
    link.symlink_to(disk)
    arguments = (photos, link, "--out", out, *QUICK, "--model", small_model)
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    away = unmount(disk)
    for words in ((), ("plan",)):
        ran = command(*words, *arguments)
        assert f"{link} leads nowhere, as if what it links to were not mounted" in ran.stderr + (
            ran.stdout
        )
    ran = command(*arguments)
    assert (ran.returncode, "10 found, all carried over, 4 kept unseen" in ran.stdout) == (7, True)
    assert out.read_bytes() == before
    assert command(*arguments, "--top-k", 3).returncode == 5, "they could not be labelled again"
    away.rename(disk)
    assert command(*arguments).returncode == 0
    unmount(disk)
    ran = command(*arguments, "--forget", link)
    assert len(rows(out)) == 10
    assert "4 gone" in ran.stdout


def test_a_path_that_never_led_anywhere_is_a_file_that_is_not_found(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    link, out = tmp_path / "later", tmp_path / "l.parquet"
    link.symlink_to(tmp_path / "nowhere")
    arguments = (
        photos,
        link,
        "--out",
        out,
        *QUICK,
        "--model",
        small_model,
        "--max-errors",
        1,
    )
    for _ in range(2):
        assert command(*arguments).returncode == 0
        assert [row["path"] for row in rows(out) if row["error_code"] == "not_found"] == ["later"]


def test_a_link_to_a_folder_inside_a_path_whose_disk_is_away(
    photos: Path, disk: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    (photos / "more" / "nas").symlink_to(disk)
    (photos / "README").symlink_to(tmp_path / "nowhere")  # costs nothing, and is no news
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, *QUICK, "--model", small_model)
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    away = unmount(disk)
    ran = command(*arguments)
    assert ran.returncode == 7
    assert f"cannot look into {photos}/more/nas: it is a link that leads nowhere" in ran.stderr
    assert "README" not in ran.stderr
    assert out.read_bytes() == before
    away.rename(disk)
    assert command(*arguments).returncode == 0
    (photos / "more" / "nas").unlink()
    ran = command(*arguments)
    assert (ran.returncode, "4 gone" in ran.stdout) == (0, True), "a link that is gone is gone"


def test_links_to_single_images_whose_disk_is_away(
    photos: Path, disk: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    """A label is kept, a row that failed is tried again, and a new link gets its row."""
    for path in sorted(disk.iterdir()):
        (photos / "more" / f"link-{path.name}").symlink_to(path)
    (photos / "never.jpg").symlink_to(tmp_path / "nowhere")
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, *QUICK, "--model", small_model, "--max-errors", 10)
    assert command(*arguments).returncode == 0
    before = {row["path"]: row["top_k"] for row in rows(out)}
    unmount(disk)
    (photos / "new.jpg").symlink_to(disk / "0000.jpg")
    (photos / "0000.jpg").unlink()
    ran = command(*arguments)
    assert ran.returncode == 7
    assert f"4 images in {photos}/more cannot be looked up: their links lead nowhere" in ran.stderr
    assert "4 kept unseen" in ran.stdout
    after = {row["path"]: row["top_k"] for row in rows(out)}
    del before["0000.jpg"]
    assert after == before | {"new.jpg": None}
    assert command(*arguments, "--restart").returncode == 5
    ran = command(*arguments, "--forget", photos / "more")
    assert ran.returncode == 0
    assert not [row for row in rows(out) if "link-" in row["path"]]
    assert len([row for row in rows(out) if row["path"].startswith("more/")]) == 3


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_files_that_a_folder_lists_and_nobody_may_look_up(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    """As in a folder of mode r without x, or where a server forgot its handles."""
    (photos / "more" / "bad.jpg").write_text("no photo")
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, *QUICK, "--model", small_model, "--max-errors", 1)
    assert command(*arguments).returncode == 0
    before = out.read_bytes()
    really = scanning._stat_entry

    def fails(entry: "os.DirEntry[str]") -> os.stat_result:
        if "/more/" in entry.path:
            raise OSError(code, os.strerror(code))
        return really(entry)

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "_stat_entry", fails)
        ran = command(*arguments)
        assert ran.returncode == 7
        why = f"4 images in {photos}/more cannot be looked up: {os.strerror(code)}"
        assert why in ran.stderr
        assert out.read_bytes() == before
        assert command(*arguments, "--top-k", 2).returncode == 5
    assert command(*arguments).returncode == 0
    assert out.read_bytes() == before


def test_a_file_that_goes_between_the_listing_and_the_look_up_is_gone(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, *QUICK, "--model", small_model, "--max-errors", 1)
    assert command(*arguments).returncode == 0
    really = scanning._stat_entry

    def goes(entry: "os.DirEntry[str]") -> os.stat_result:
        if entry.path == f"{photos}/0000.jpg":
            os.unlink(entry.path)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return really(entry)

    monkeypatch.setattr(scanning, "_stat_entry", goes)
    ran = command(*arguments)
    assert (ran.returncode, "kept unseen" in ran.stdout) == (0, False)
    assert [row["path"] for row in rows(out) if row["error_code"]] == ["0000.jpg"]


# -- PATHs in others -----------------------------------------------------------------------------


def empty(folder: Path) -> None:
    folder.rename(folder.parent.parent / "unmounted")
    folder.mkdir()


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        (".private", ("a", "a/.private"), ("a", "a/.private")),
        ("sub", ("a/sub",), ("a", "a/sub")),
        ("sub", ("a",), ("a/sub",)),
        (".h/sub", ("a", "a/.h", "a/.h/sub"), ("a", "a/.h", "a/.h/sub")),
        ("sub", ("a/0000.jpg", "a/sub"), ("a/0000.jpg", "a/sub")),
    ],
)
def test_an_empty_path_in_another_keeps_its_rows_under_whichever_root_they_are(
    small_model: Path,
    command: Command,
    tmp_path: Path,
    name: str,
    first: tuple[str, ...],
    then: tuple[str, ...],
) -> None:
    a, out = make_photos(tmp_path / "a", 2), tmp_path / "l.parquet"
    sub = make_photos(a / name, 3)
    options = ("--out", out, *QUICK, "--model", small_model)
    assert command(*(tmp_path / path for path in first), *options).returncode == 0
    before = [row for row in rows(out) if f"{name}/" in f"{row['root']}/{row['path']}"]
    assert len(before) == 3
    empty(sub)
    ran = command(*(tmp_path / path for path in then), *options)
    assert ran.returncode == 7
    assert f"{sub} holds no image any more" in ran.stderr
    assert "3 kept unseen" in ran.stdout
    after = rows(out)
    assert [row for row in after if row in before] == before


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_over_two_disks_of_which_one_is_away(
    photos: Path, disk: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out, listed = tmp_path / "l.parquet", tmp_path / "list.txt"
    names = [*map(str, sorted(photos.rglob("*.jpg"))), *map(str, sorted(disk.iterdir()))]
    listed.write_text("\n".join([*names, str(tmp_path / "never.jpg")]))
    arguments = (
        "--files-from",
        listed,
        "--out",
        out,
        *QUICK,
        "--model",
        small_model,
        "--max-errors",
        5,
    )
    assert command(*arguments).returncode == 0
    away = unmount(disk)
    ran = command(*arguments)
    assert ran.returncode == 7
    assert "of the 15 files that the list names 5 are not there" in ran.stderr
    assert "4 kept unseen" in ran.stdout
    labels = {row["path"] for row in rows(out) if row["status"] == "ok"}
    assert len(labels) == 14, "never.jpg is tried again, and no other row failed"
    listed.write_text("\n".join([*names, str(disk / "new.jpg")]))
    ran = command(*arguments)
    assert ran.returncode == 7
    assert [row["path"].rpartition("/")[2] for row in rows(out) if row["error_code"]] == ["new.jpg"]
    ran = command(*arguments, "--forget", disk)
    assert ran.returncode == 0
    assert len(rows(out)) == 11, "the new name keeps its row"
    away.rename(disk)
    listed.write_text("\n".join(names))
    assert command(*arguments).returncode == 0
    assert len(rows(out)) == 14


def test_an_empty_list_in_a_folder_that_is_a_path_too(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    """What the PATH does not take is the list's, though both have one root."""
    here, out, listed = make_photos(tmp_path / "cwd", 3), tmp_path / "l.parquet", tmp_path / "list"
    photo(9).save(here / "raw.dat", "jpeg")
    make_photos(here / ".hidden", 1)
    listed.write_text("raw.dat\n.hidden/0000.jpg\n0001.jpg\n")
    arguments = (".", "--files-from", listed, "--out", out, *QUICK, "--model", small_model)
    assert command(*arguments).returncode == 0
    assert {row["root"] for row in rows(out)} == {str(here)}
    listed.write_text("")
    (here / "0000.jpg").unlink()
    ran = command(*arguments)
    assert ran.returncode == 7
    assert "2 found, 0 labelled, 2 carried over, 2 kept unseen, 1 gone" in ran.stdout
    assert [row["path"] for row in rows(out)] == [
        ".hidden/0000.jpg",
        "0001.jpg",
        "0002.jpg",
        "raw.dat",
    ]


def test_an_empty_list_beside_a_file_named_outright(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    """Its row is compared as ever; the list's, under the same root, are kept."""
    here, out, listed = make_photos(tmp_path / "cwd", 3), tmp_path / "l.parquet", tmp_path / "list"
    listed.write_text("0001.jpg\n0002.jpg\n")
    arguments = (
        "0000.jpg",
        "--files-from",
        listed,
        "--out",
        out,
        *QUICK,
        "--model",
        small_model,
    )
    assert command(*arguments).returncode == 0
    listed.write_text("")
    photo(9).save(here / "0000.jpg")
    ran = command(*arguments)
    assert ran.returncode == 7
    assert "1 found, 1 labelled, 0 carried over, 2 kept unseen" in ran.stdout
    assert len(rows(out)) == 3


# -- tables that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["empty", "link", "list"])
@pytest.mark.parametrize("damage", ["rows", "all"])
def test_a_damaged_table_is_not_replaced_by_an_empty_one(
    disk: Path, small_model: Path, command: Command, tmp_path: Path, fault: str, damage: str
) -> None:
    out, listed, link = tmp_path / "l.parquet", tmp_path / "list", tmp_path / "link"
    listed.write_text(f"{disk}/0000.jpg\n")
    link.symlink_to(disk)
    what = {"empty": (disk,), "link": (link,), "list": ("--files-from", listed)}[fault]
    arguments = (*what, "--out", out, *QUICK, "--model", small_model)
    assert command(*arguments).returncode == 0
    whole = out.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    no_rows = whole[:4] + bytes(len(whole) - 4 - footer) + whole[-footer:]
    out.write_bytes(no_rows if damage == "rows" else whole[: len(whole) // 2])
    before = out.read_bytes()
    away = unmount(disk)
    if fault == "empty":
        disk.mkdir()
    listed.write_text("")
    word = "--restart" if damage == "rows" else "--overwrite"
    for words in ((), ("plan",)):
        ran = command(*words, *arguments, word)
        assert ran.returncode == 5, ran.stderr
        assert f"the rows of {out} cannot be read" in ran.stderr
        assert "--forget FOLDER, or choose another --out" in ran.stderr
        assert out.read_bytes() == before
    if fault == "empty":
        disk.rmdir()
    away.rename(disk)
    listed.write_text(f"{disk}/0000.jpg\n")
    # All of them are young, and nobody can say which of them had a row.
    assert command(*arguments, word, "--settle", "1h").returncode == 0
    assert len(rows(out)) == (1 if fault == "list" else 4)


def test_a_table_of_images_that_the_disk_does_not_give_is_not_taken_for_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "a", 1)
    (tmp_path / "a" / "t.parquet").write_bytes(b"x")

    def fails(place: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(packed, "opened", fails)
    found = scan([tmp_path / "a"], Selection(image_column="image"))
    assert found.unlisted == {(str(tmp_path / "a"), "t.parquet"): "Input/output error"}


def test_thousands_of_paths_in_one_another_are_looked_up_and_not_looked_through() -> None:
    n = 2000
    nothing = [None] * n * 100
    names = [f"{k:05}/{i:02}.jpg" for k in range(n) for i in range(100)]
    columns = [["/a"] * len(names), names, *[nothing] * 5]
    listing = pa.table(columns, schema=LISTING)
    roots = ["/a", *(f"/a/{k:05}" for k in range(n + 1))]
    start = time.monotonic()
    assert empty_roots(roots, lies_in(roots), Places(listing, [])) == [f"/a/{n:05}"]
    assert time.monotonic() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("below", ["", "disk", "a/disk"])
def test_a_disk_mounted_in_a_path_keeps_its_rows_while_it_is_away(
    small_model: Path, process: Command, tmp_path: Path, below: str
) -> None:
    """Its mount point is an ordinary folder then, empty or with something left in it."""
    photos, disk, out = tmp_path / "photos", make_photos(tmp_path / "real", 5), tmp_path / "t"
    place = photos / below
    place.mkdir(parents=True)
    other = make_photos(tmp_path / "other", 3)
    arguments = (photos, other, "--out", out, *QUICK, "--model", small_model)
    mounted = with_mount(place, "10m", before=f"cp -a {disk}/. {place}")
    assert process(*arguments, before=mounted).returncode == 0
    first = labels(out)
    assert len(first) == 8
    photo(70).save(other / "new.jpg")
    photo(71).save(place / "stray.jpg")
    ran = process(*arguments)
    assert ran.returncode == 7, ran.stderr
    assert f"{place} was a mount point and is none now" in ran.stderr
    assert {path: labels(out)[path] for path in first} == first
    assert process(*arguments).returncode == 7, "remembered while it is away"
    (place / "stray.jpg").unlink()
    ran = process(*arguments, before=mounted)
    assert (ran.returncode, "0 labelled, 9 carried over, 1 gone" in ran.stdout) == (0, True)
    shutil.copytree(disk, place, dirs_exist_ok=True)  # with the times they have
    ran = process(*arguments)
    assert (ran.returncode, "nothing changed: 9 found" in ran.stdout) == (0, True), ran.stdout
    shutil.rmtree(place)
    place.mkdir()
    ran = process(*arguments, "--forget", photos)
    assert (ran.returncode, "5 gone" in ran.stdout) == (0, True), ran.stderr


@pytest.mark.slow
def test_a_disk_in_a_path_that_goes_while_all_is_labelled_again(
    small_model: Path, process: Command, tmp_path: Path
) -> None:
    """The PATH itself is there, and holds other photos."""
    photos, disk = make_photos(tmp_path / "photos", 4), make_photos(tmp_path / "real", 5)
    place, out = photos / "disk", tmp_path / "l.parquet"
    place.mkdir()
    arguments = (photos, "--out", out, "--workers", 0, "--shard-size", 2, "--batch-size", 2)
    mounted = with_mount(place, "10m", before=f"cp -a {disk}/. {place}")
    assert process(*arguments, "--model", small_model, before=mounted).returncode == 0
    before = out.read_bytes()
    again = (*arguments, "--top-k", 3)
    assert process(*again, "--max-runtime", "0.001s", before=mounted).returncode == 6
    for _ in range(2):
        ran = process(*again)
        assert ran.returncode == 5, ran.stderr
        assert f"{place} is not there any more, or empty" in ran.stderr
        assert out.read_bytes() == before
    ran = process(*again, before=mounted)
    assert ran.returncode == 0, ran.stderr
    assert "going on: " in ran.stderr
    assert {len(top_k) for top_k in labels(out).values()} == {3}
    assert len(labels(out)) == 9
