"""What storage boxes, systems and photo programs keep beside photos: left out, counted and named."""

import json
import os
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.fs import FileInfo, FileType

from jobs.storage.object_store import StorePath, at
from pipeline.find import left_out
from pipeline.find.clutter import kind_of
from pipeline.find.left_out import LeftClutter, clutter_among
from pipeline.find.scan import scan
from pipeline.find.selection import Selection
from tests.helpers import Command, make_photos, rows
from tests.test_containers import jpeg, make_tar
from tests.test_pipeline_scan import paths, touch

CLUTTER = {
    "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg": "@eaDir",
    "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
    "#recycle/gone.jpg": "#recycle",
    "#snapshot/GMT-01/a/1.jpg": "#snapshot",
    "@Recycle/gone.jpg": "@Recycle",
    ".@__thumb/default1.jpg": ".@__thumb",
    ".Trash-1000/files/x.jpg": ".Trash*",
    ".Trashes/501/x.jpg": ".Trash*",
    "$RECYCLE.BIN/S-1-5/$R1.jpg": "$RECYCLE.BIN",
    "$Recycle.Bin/S-1-5/$R1.jpg": "$RECYCLE.BIN",
    "System Volume Information/x.jpg": "System Volume Information",
    "lost+found/#123.jpg": "lost+found",
    "a/._1.jpg": "._*",
    "a/Thumbs.db": "Thumbs.db",
    ".thumbnails/large/x.png": ".thumbnails",
    "lr/My Previews.lrdata/0/x.jpg": "*.lrdata",
    "mac/My.photoslibrary/resources/derivatives/1.jpg": "*.photoslibrary",
    "mac/Old.photolibrary/Thumbnails/1.jpg": "*.photolibrary",
    "mac/Old.aplibrary/Previews/1.jpg": "*.aplibrary",
    "mac/My.photoslibrary/originals/@eaDir/1.jpg": "@eaDir",
}
PHOTOS = [
    "a/1.jpg",
    "a/eaDir/1.jpg",
    "a/Masters/1.jpg",
    "lr/lrdata/1.jpg",
    "mac/My.photoslibrary/originals/0/1.heic",
    "mac/Old.aplibrary/Masters/2009/1.jpg",
    "mac/Old.photolibrary/Originals/2009/resources/1.jpg",
    "photoslibrary/resources/1.jpg",
]


def test_clutter_is_left_out_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, *PHOTOS, *CLUTTER, "a/.hidden/x.jpg", "a/film.mov")
    found = scan([tmp_path])
    assert paths(found) == sorted(PHOTOS)
    kinds = list(CLUTTER.values())
    assert found.clutter.files == {kind: kinds.count(kind) for kind in kinds}
    assert str(found.clutter).startswith("@eaDir 3 files, $RECYCLE.BIN 2 files, .Trash* 2 files, ")
    assert ", #recycle 1 file, " in str(found.clutter)
    assert found.other == {".mov": 1}
    with_all = scan([tmp_path], Selection(default_excludes=False))
    assert paths(with_all) == sorted(
        [*PHOTOS, "a/.hidden/x.jpg", *CLUTTER.keys() - {"a/Thumbs.db"}]
    )


def test_what_a_root_is_called_is_its_users_word(tmp_path: Path) -> None:
    touch(tmp_path, ".thumbnails/a.jpg", "@eaDir/b/c.jpg", "x.lrdata/d.jpg")
    roots = [tmp_path / ".thumbnails", tmp_path / "@eaDir" / "b", tmp_path / "x.lrdata"]
    assert paths(scan(roots)) == ["a.jpg", "c.jpg", "d.jpg"]
    assert paths(scan([tmp_path])) == []
    assert paths(scan([tmp_path / "@eaDir" / "b" / "c.jpg"])) == ["c.jpg"]
    assert scan([], listed=f"{tmp_path}/@eaDir/b/c.jpg".encode()).listing.num_rows == 1


def test_a_library_that_is_named_gives_its_originals_alone(tmp_path: Path) -> None:
    library = tmp_path / "My.photoslibrary"
    touch(library, "originals/1/a.heic", "resources/derivatives/a.jpg", "private/x/b.jpg")
    found = scan([library])
    assert paths(found) == ["originals/1/a.heic"]
    assert str(found.clutter) == "*.photoslibrary 2 files"
    assert paths(scan([library / "resources"])) == ["derivatives/a.jpg"]


def test_include_takes_no_clutter_either(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".b.jpg", "Thumbs.db", "other.db")
    everything = Selection(include=("*",))
    found = scan([tmp_path], everything)
    assert paths(found) == [".b.jpg", "a.jpg", "other.db"]
    assert str(found.clutter) == "._* 1 file, Thumbs.db 1 file"
    assert len(scan([tmp_path], Selection(("*",), default_excludes=False)).listing) == 5


def test_every_way_to_ask_says_the_same(tmp_path: Path) -> None:
    """The scan, what may be kept unseen, and what of a table's rows is clutter."""
    names = ["a", "@EADIR", ".Trashy", "b.lrdata", "c.photoslibrary", "Originals", "lost+found"]
    every = [f"{x}/{y}/{z}/1.jpg" for x, y, z in product(names, repeat=3)]
    touch(tmp_path, *every, "a/._1.jpg")
    for root in (tmp_path, tmp_path / "c.photoslibrary"):
        found = set(paths(scan([root])))
        here = [str(path.relative_to(root)) for path in root.rglob("*.jpg")]
        assert found
        assert {path for path in here if kind_of(path, str(root)) is None} == found
        assert {path for path in here if Selection().takes(path, str(root))} == found
        table = pa.table({"root": [str(root)] * len(here), "path": here})
        assert set(clutter_among(table)["path"].to_pylist()) == set(here) - found


def test_members_of_archives_and_archives_in_clutter(tmp_path: Path) -> None:
    (tmp_path / "p" / "#recycle").mkdir(parents=True)
    files = {"a/1.jpg": jpeg(1), "a/@eaDir/1.jpg/M.jpg": jpeg(1), "a/._1.jpg": b"x", "2.jpg": b"x"}
    make_tar(tmp_path / "p" / "x.tar", files | {"a/.hidden/3.jpg": b"x", "a/4.jpg": b"x"})
    os.link(tmp_path / "p" / "x.tar", tmp_path / "p" / "#recycle" / "y.tar")
    found = scan([tmp_path / "p"])
    expected = ["x.tar/2.jpg", "x.tar/a/.hidden/3.jpg", "x.tar/a/1.jpg", "x.tar/a/4.jpg"]
    assert paths(found) == expected
    assert found.clutter.files == {"@eaDir": 1, "._*": 1, "#recycle": 1}
    all_of_it = scan([tmp_path / "p"], Selection(default_excludes=False))
    assert len(all_of_it.listing) == 12


def test_a_stores_clutter_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder would be a request."""
    listed = {
        "": ["1.jpg", "@eaDir/", "a/", "._1.jpg"],
        "a": ["2.jpg", "@eaDir/", "x.lrdata/"],
    }
    asked = []

    def entries(self: StorePath) -> list[FileInfo]:
        folder = str(self).removeprefix("s3://bucket/photos").strip("/")
        asked.append(folder)
        return [
            FileInfo(
                f"bucket/photos/{folder}/{name.rstrip('/')}",
                FileType.Directory if name.endswith("/") else FileType.File,
                size=1,
            )
            for name in listed[folder]
        ]

    monkeypatch.setattr(StorePath, "entries", entries)
    monkeypatch.setattr(StorePath, "fs", SimpleNamespace(type_name="s3"))  # none is asked
    monkeypatch.setattr(StorePath, "info", lambda self: FileInfo("photos", FileType.Directory))
    place = at("s3://bucket/photos")
    assert isinstance(place, StorePath)
    found = scan([place])
    assert paths(found) == ["1.jpg", "a/2.jpg"]
    assert sorted(asked) == ["", "a"]
    assert str(found.clutter) == "._* 1 file, @eaDir 2 folders, *.lrdata 1 folder"


def test_very_much_clutter_is_not_counted_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in range(4):
        touch(tmp_path, *(f"{folder}/@eaDir/{photo}/M.jpg" for photo in range(5)))
    assert str(scan([tmp_path]).clutter) == "@eaDir 20 files"
    monkeypatch.setattr(left_out, "_MOST_FOLDERS", 7)
    found = scan([tmp_path])
    assert str(found.clutter) == "@eaDir more than 5 files"
    assert found.clutter.to_record()["@eaDir"]["files"] == 5
    monkeypatch.setattr(left_out, "_MOST_FOLDERS", 0)
    assert str(scan([tmp_path]).clutter) == "@eaDir 4 folders"


def test_a_loop_in_clutter_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "@eaDir/a.jpg")
    (tmp_path / "@eaDir" / "up").symlink_to("..")
    clutter = LeftClutter()
    clutter.add_folder("@eaDir", str(tmp_path / "@eaDir"))
    assert clutter.files == {"@eaDir": 2}, "a link in it is one file"
    clutter = LeftClutter()
    clutter.add_folder("lost+found", str(tmp_path / "gone"))
    assert not clutter


def test_rows_of_clutter_go_and_a_line_says_so(
    small_model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "p", 3)
    make_photos(photos / "@eaDir", 2)
    (photos / "b.mov").write_bytes(b"x")
    out = tmp_path / "l.parquet"
    arguments: tuple[Any, ...] = (photos, "--out", out, "--model", small_model, "--workers", 0)
    with monkeypatch.context() as earlier:  # a version that knew no clutter
        earlier.setattr("pipeline.find.selection.folder_kind", lambda path, root: None)
        earlier.setattr("pipeline.find.selection.DEFAULT_EXCLUDES", None)
        assert command(*arguments).stdout.startswith("5 found, 5 labelled")
    said = (
        "2 rows that the table had of clutter go: an earlier version labelled what is left out by "
        "default now (--no-default-excludes keeps them)\n"
    )
    planned = command("plan", *arguments).stdout
    assert "\nleft out: @eaDir 2 files\nother files left out: 1 (.mov 1)\n" in planned
    assert said in planned
    facts = json.loads(command("plan", *arguments, "--log-json").stdout)
    assert facts["left_out"] == {"@eaDir": {"files": 2, "uncounted_folders": 0}}
    assert (facts["dropped_clutter"], facts["counts"]["gone"]) == (2, 2)

    kept = command(*arguments, "--no-default-excludes")
    assert kept.stdout.startswith("nothing changed: 5 found, all carried over")
    ran = command(*arguments)
    assert ran.stdout.startswith("3 found, 0 labelled, 3 carried over, 2 gone")
    assert ran.returncode == 0
    assert said in ran.stderr
    assert "2 gone; left out: @eaDir 2 files; other files left out: 1 (.mov 1)\n" in ran.stderr
    assert [row["path"] for row in rows(out)] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert "rows that the table had" not in command(*arguments).stderr


def test_an_archive_that_is_known_is_looked_into_for_its_clutter(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    make_tar(tmp_path / "x.tar", {"1.jpg": jpeg(1), "@eaDir/1.jpg": jpeg(2)})
    arguments = (
        tmp_path / "x.tar",
        "--out",
        tmp_path / "l.parquet",
        "--model",
        small_model,
        "--workers",
        0,
    )
    assert command(*arguments, "--no-default-excludes").stdout.startswith("2 found, 2 labelled")
    assert command(*arguments).stdout.startswith("1 found, 0 labelled, 1 carried over, 1 gone")


def test_a_table_of_an_earlier_version_needs_no_look_into_archives_without_clutter(
    small_model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "x.tar", {"1.jpg": jpeg(1)})
    arguments = (
        tmp_path / "x.tar",
        "--out",
        tmp_path / "l.parquet",
        "--model",
        small_model,
        "--workers",
        0,
    )
    assert command(*arguments, "--no-default-excludes").stdout.startswith("1 found, 1 labelled")
    looked_into = []
    monkeypatch.setattr("pipeline.find.packed.members", lambda file: looked_into.append(file) or [])
    assert command(*arguments).stdout.startswith("nothing changed: 1 found")
    assert not looked_into
    command("plan", *arguments, "--exclude", "2.jpg")
    assert looked_into, "of other names nothing is known"
