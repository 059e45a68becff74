"""Folders -> listing: what is found, what is left out, and names of every kind."""

import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan import LISTING
from pipeline.errors import UsageError
from pipeline.find.file_list import read_list
from pipeline.find.found import Scan
from pipeline.find.left_out import LeftOut
from pipeline.find.scan import scan
from pipeline.find.selection import Selection
from pipeline.path_names import display, escape_name, printable, unescape_name
from tests.helpers import Command, make_photos


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def paths(found: Scan) -> list[str]:
    return sorted(found.listing["path"].to_pylist())


def test_images_are_found_by_name_at_any_depth(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "B.JPEG",
        "c/d.png",
        "c/e/f.WebP",
        "c/e/g.heic",
        "notes.txt",
        "noext",
        ".hidden.jpg",
        ".git/x.jpg",
    )
    found = scan([tmp_path])
    assert paths(found) == ["B.JPEG", "a.jpg", "c/d.png", "c/e/f.WebP", "c/e/g.heic"]
    assert found.listing.schema == LISTING
    assert set(found.listing["root"].to_pylist()) == {str(tmp_path)}
    assert found.n_other == 3
    assert found.other == {".txt": 1, "no extension": 1, "hidden": 1}
    info = (tmp_path / "a.jpg").stat()
    row = next(row for row in found.listing.to_pylist() if row["path"] == "a.jpg")
    assert row["size_bytes"] == info.st_size
    assert pa.scalar(row["mtime"], LISTING.field("mtime").type).value == info.st_mtime_ns // 1000


def test_include_and_exclude(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.raw", "c/d.jpg", "thumbs/e.jpg", "c/thumbs/f.jpg")
    assert paths(scan([tmp_path], Selection(include=("*.raw",)))) == ["b.raw"]
    assert paths(scan([tmp_path], Selection(include=("c/*.jpg",)))) == ["c/d.jpg", "c/thumbs/f.jpg"]
    assert paths(scan([tmp_path], Selection(exclude=("thumbs",)))) == ["a.jpg", "c/d.jpg"]
    assert paths(scan([tmp_path], Selection(exclude=("c/*",)))) == ["a.jpg", "thumbs/e.jpg"]


def test_include_is_matched_in_any_case_and_exclude_by_the_letter(tmp_path: Path) -> None:
    """As the usual extensions are: a camera's IMG.JPG was not taken by *.jpg. But what --exclude
    leaves out loses its rows, and so is never more than what was written.
    """
    touch(tmp_path, "IMG.JPG", "b.jpg", "Thumbs/c.jpg", "d/RAW/e.jpg")
    assert paths(scan([tmp_path], Selection(include=("*.jpg",)))) == [
        "IMG.JPG",
        "Thumbs/c.jpg",
        "b.jpg",
        "d/RAW/e.jpg",
    ]
    assert paths(
        scan([tmp_path], Selection(include=("[A-Z]*.JPG",), exclude=("thumbs", "D/raw/*", "img*")))
    ) == ["IMG.JPG", "Thumbs/c.jpg", "b.jpg", "d/RAW/e.jpg"]
    assert paths(scan([tmp_path], Selection(exclude=("Thumbs", "d/RAW/*", "IMG*")))) == ["b.jpg"]
    assert "any_case" not in Selection(exclude=("IMG*",)).to_record()
    assert Selection(include=("*.jpg",)).to_record() != Selection().to_record() | {
        "include": ["*.jpg"]
    }, "it means another"


def test_what_is_left_out_is_counted_by_extension(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        *(f"{n}.CR2" for n in range(4)),
        "x.mov",
        "y.Mov",
        "README",
        "b.",
        ".DS_Store",
        "c.x y z",
    )
    touch(tmp_path, *(f"one.{n:03}" for n in range(9)), "long.extension-of-many-letters")
    found = scan([tmp_path])
    assert found.n_other == 20
    assert found.other["hidden"] == found.other[".x y z"] == found.other["others"] == 1
    text = str(found.other)
    assert text.startswith("20 (.cr2 4, .mov 2, no extension 2, .000 1, ")
    assert text.endswith(", .004 1, others 7)")
    assert text.count(",") == 8, "the eight most frequent"


def test_plan_and_run_name_the_kinds_that_are_left_out(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "p", 2)
    touch(photos, "a.PSD", "b.psd", "c.mov")
    arguments = (photos, "--out", tmp_path / "l.parquet", "--model", small_model)
    assert "\nother files left out: 3 (.psd 2, .mov 1)\n" in command("plan", *arguments).stdout
    assert (
        "2 found, 2 new; other files left out: 3 (.psd 2, .mov 1)\n" in command(*arguments).stderr
    )


def test_a_million_extensions_take_no_memory() -> None:
    other = LeftOut()
    for number in range(20_000):
        other.add(f"a/b.{number}")
    other.add("c.0")
    assert len(other) <= 1001
    assert other.total() == 20_001
    assert str(other).startswith("20,001 (.0 2, .1 1, ")
    assert str(other).endswith(", others 19,992)")


def test_a_file_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "scan.dat", "a.jpg")
    found = scan([tmp_path / "scan.dat", tmp_path / "a.jpg"])
    assert paths(found) == ["a.jpg", "scan.dat"]
    assert set(found.listing["root"].to_pylist()) == {str(tmp_path)}
    with pytest.raises(UsageError, match="does not exist"):
        scan([tmp_path / "missing"])


def test_lists_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/a.jpg", "there/b.jpg", "there/new\nline.jpg")
    monkeypatch.chdir(tmp_path / "here")
    listed = f"a.jpg\n../there/b.jpg\n\n{tmp_path}/there/gone.jpg\n".encode()
    found = {
        (row["root"], row["path"]): row["size_bytes"]
        for row in scan([], listed=listed).listing.to_pylist()
    }
    there = str(tmp_path / "there")[1:]
    assert found == {
        (str(tmp_path / "here"), "a.jpg"): 1,
        ("/", f"{there}/b.jpg"): 1,
        ("/", f"{there}/gone.jpg"): None,
    }
    assert paths(scan([], listed=f"{tmp_path}/there/new\nline.jpg\0".encode())) == [
        f"{there}/new\nline.jpg"
    ]
    (tmp_path / "list").write_bytes(listed)
    assert read_list(str(tmp_path / "list")) == listed
    assert read_list(None) is None
    with pytest.raises(UsageError, match="cannot be read"):
        read_list(str(tmp_path / "no-list"))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    touch(photos, "a.jpg", "sub/b.jpg")
    touch(other, "c.jpg")
    (photos / "loop").symlink_to(photos)
    (photos / "sub" / "up").symlink_to("..")
    (photos / "linked").symlink_to(other)
    (photos / "dangling.jpg").symlink_to("nowhere")
    (photos / "self.jpg").symlink_to("self.jpg")
    found = scan([photos])
    assert paths(found) == ["a.jpg", "dangling.jpg", "linked/c.jpg", "self.jpg", "sub/b.jpg"]
    sizes = dict(
        zip(found.listing["path"].to_pylist(), found.listing["size_bytes"].to_pylist(), strict=True)
    )
    assert sizes["dangling.jpg"] is sizes["self.jpg"] is None


def test_pipes_and_sockets_are_listed_without_size_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
        assert scan([tmp_path]).listing.select(["path", "size_bytes"]).to_pylist() == [
            {"path": name, "size_bytes": None} for name in paths(scan([tmp_path]))
        ]
    assert paths(scan([tmp_path])) == ["pipe.jpg", "socket.jpg"]


def test_a_folder_that_cannot_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    real = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan([tmp_path])
    assert paths(found) == ["a.jpg"]
    assert found.unlisted == {(str(tmp_path), "secret"): "Permission denied"}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9 \\ \xf0\x9f\x98\x80.jpg"
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    (tmp_path / "caf\\xe9.jpg").write_bytes(b"x")
    rows = {row["path"]: row["path_bytes"] for row in scan([tmp_path]).listing.to_pylist()}
    assert rows == {"caf\\xe9 \\x5c 😀.jpg": name, "caf\\x5cxe9.jpg": b"caf\\xe9.jpg"}


@settings(max_examples=300)
@given(
    st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name),
    st.binary(min_size=1, max_size=12),
)
def test_escaping_names_loses_nothing_and_joins_none(name: bytes, other: bytes) -> None:
    text, kept = escape_name(name)
    assert unescape_name(text) == name
    assert (kept is None) == (text.encode() == name)
    assert (escape_name(other)[0] == text) == (other == name)


@given(st.text(st.sampled_from("\\x5ce9ab"), min_size=1, max_size=10))
def test_escaping_names_that_look_escaped(name: str) -> None:
    assert unescape_name(escape_name(name.encode())[0]) == name.encode()


def test_what_is_printed_cannot_rule_the_terminal() -> None:
    assert printable("a\nb\x1b[2J\tü 😀\x85") == "a\\nb\\x1b[2J\\tü 😀\\x85"


def test_display_is_text_for_any_path() -> None:
    assert display(os.fsdecode(b"/data/\xff")) == "/data/\\xff"
    assert display("/data/ä") == "/data/ä"


@pytest.mark.slow
def test_a_hundred_thousand_names_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"x")
    for i in range(1, 100_000):
        os.link(tmp_path / f"{(i - 1) // 30_000 * 30_000}.jpg", tmp_path / f"{i}.jpg")
        if i % 30_000 == 0:
            (tmp_path / f"{i}.jpg").unlink()
            (tmp_path / f"{i}.jpg").write_bytes(b"x")
    assert len(scan([tmp_path]).listing) == 100_000
