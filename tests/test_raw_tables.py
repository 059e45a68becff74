"""Raw photos in folders and tables: with what reads them and without, alone and beside a JPEG."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.plan import LISTING
from pipeline.find.pairs import first_of_pairs
from pipeline.find.scan import scan
from pipeline.find.selection import EXTENSIONS, RAW_EXTENSIONS, Selection, has_raw
from tests.helpers import Command, make_photos, photo, rows
from tests.raw_photos import dng, jpeg_preview
from tests.test_pipeline_scan import paths, touch

pytest.importorskip("rawpy")

HINT = "2 raw photos are left out: nothing here reads them (pip install 'label-images[raw]' brings what does)\n"


def raw_photo(seed: int, orientation: int = 1) -> bytes:
    image = photo(seed, 160, 120)
    return dng(image, orientation, jpeg_preview(image, orientation))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = make_photos(tmp_path / "photos", 3)
    (folder / "a.DNG").write_bytes(raw_photo(5, 6))
    (folder / "b.nef").write_bytes(raw_photo(6))
    (folder / "c.mov").write_bytes(b"x")
    return folder


@pytest.fixture
def without_raw(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As where the extra is not installed."""
    monkeypatch.setattr("pipeline.settings.has_raw", lambda: False)
    monkeypatch.setattr("pipeline.load.raw._rawpy", lambda: None)
    return monkeypatch


def test_raw_photos_are_labelled_where_they_can_be_read(
    photos: Path, small_model: Path, process: Command, tmp_path: Path
) -> None:
    out, packed = tmp_path / "l.parquet", tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "p.tar", "w") as archive:
        for file in sorted(photos.iterdir()):
            archive.add(file, file.name)
    ran = process(photos, packed, "--out", out, "--model", small_model, "--workers", 2)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("10 found, 5 labelled, 5 reused")
    found = {row["path"]: row for row in rows(out)}
    assert found["a.DNG"]["decode_notes"] == ["raw_preview", "exif_rotated"]
    assert (found["a.DNG"]["format"], found["a.DNG"]["width"]) == ("RAW", 160)
    assert found["b.nef"]["decode_notes"] == ["raw_preview"]
    for name in ("a.DNG", "b.nef"):
        assert found[name]["label"] == found[f"p.tar/{name}"]["label"]
    assert process("verify", out).returncode == 0


def test_without_the_extra_the_plan_says_what_to_install_and_with_it_only_they_are_new(
    photos: Path, small_model: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.settings.has_raw", lambda: False)
        planned = command("plan", *arguments).stdout
        assert f"\nother files left out: 3 (.dng 1, .mov 1, .nef 1)\n{HINT}" in planned
        assert json.loads(command("plan", *arguments, "--log-json").stdout)["raw_left_out"] == 2
        ran = command(*arguments)
        assert ran.stdout.startswith("3 found, 3 labelled")
        assert HINT in ran.stderr
        assert "raw photos" not in command(*arguments, "--include", "*.jpg").stderr
        only_raw = tmp_path / "raw"
        only_raw.mkdir()
        (only_raw / "a.cr2").write_bytes(b"x")
        printed = command(only_raw, "--model", small_model)
        assert "1 raw photo found and no other image; pip install 'label-images" in printed.stderr
    # The JPEGs' labels stay: raw photos are no other rule for them.
    ran = command(*arguments)
    assert ran.stdout.startswith("5 found, 2 labelled, 3 carried over")
    assert "raw photos" not in ran.stderr


def test_rows_of_raw_photos_stay_where_nothing_reads_them_any_more(
    photos: Path,
    small_model: Path,
    command: Command,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A machine that was set up anew without the extra must not cost labels."""
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--workers", 0)
    assert command(*arguments).stdout.startswith("5 found, 5 labelled")
    before = rows(out)
    request.getfixturevalue("without_raw")
    assert command(*arguments).stdout.startswith("nothing changed: 5 found")
    (photos / "d.arw").write_bytes(raw_photo(7))
    ran = command(*arguments)
    assert ran.stdout.startswith("6 found, 0 labelled, 5 carried over, 1 failed")
    assert ran.returncode == 3, "nobody misses it"
    after = {row["path"]: row for row in rows(out)}
    assert [after[row["path"]] for row in before] == before
    assert after["d.arw"]["error_code"] == "unsupported"
    assert "pip install rawpy" in after["d.arw"]["error_detail"]
    make_photos(photos / "more", 1)
    command(*arguments)
    request.getfixturevalue("monkeypatch").undo()
    ran = command(*arguments)
    assert ran.stdout.startswith("7 found, 1 labelled, 6 carried over"), "as soon as it is there"


def test_an_unfinished_job_goes_on_without_the_extra(
    photos: Path, small_model: Path, command: Command, tmp_path: Path, request: Any
) -> None:
    out = tmp_path / "l.parquet"
    arguments = (photos, "--out", out, "--model", small_model, "--workers", 0, "--shard-size", 1)
    assert command(*arguments, "--max-runtime", "0.0001").returncode == 6
    request.getfixturevalue("without_raw")
    ran = command(*arguments)
    assert "planning again" not in ran.stderr
    assert ran.stdout.startswith("5 found")


def test_names_of_raw_photos() -> None:
    assert has_raw()
    assert not RAW_EXTENSIONS & EXTENSIONS
    assert Selection().kind("a.dng") is None
    assert Selection(raw=True).kind("b/a.DNG") == "image"
    assert Selection(raw=True).kind(".a.dng") is None
    assert Selection(include=("*.jpg",), raw=True).kind("a.dng") is None
    assert "raw" not in Selection().to_record()
    assert "raw" not in Selection(include=("*.jpg",), raw=True).to_record()
    assert Selection(raw=True, pairs="first").to_record().items() >= {
        ("raw", True),
        ("pairs", "first"),
    }


def test_of_a_pair_all_files_have_rows_or_the_first(tmp_path: Path) -> None:
    text = (
        "1.CR2 1.JPG 2.nef 2.heic 3.nef 3.tif 3.png 4.dng 4.cr3 5.arw 5.raf 6.jpg 6.png 7.dng 7.a.jpg "
        "8.dng x/8.jpg x/y.z/9.dng x/y.z/9.jpeg x/y.jpg 10.dng 10.JPE 10.avif"
    )
    names = text.split()
    touch(tmp_path, *names)
    everything = scan([tmp_path], Selection(raw=True))
    assert paths(everything) == sorted(names)
    assert everything.n_paired == 0
    first = scan([tmp_path], Selection(raw=True, pairs="first"))
    kept = "1.JPG 2.heic 3.png 4.dng 5.arw 6.jpg 6.png 7.dng 7.a.jpg 8.dng x/8.jpg x/y.z/9.jpeg x/y.jpg 10.JPE"
    assert paths(first) == sorted(kept.split())
    assert first.n_paired == len(names) - len(kept.split())
    # What is no raw photo here is no pair.
    without = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    assert paths(scan([tmp_path], Selection(pairs="first"))) == sorted(without)


def test_pairs_in_very_many_rows_and_other_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop, with pieces so small that pairs fall into several."""
    monkeypatch.setattr("pipeline.find.pairs._CHUNK_ROWS", 7)
    generator = random.Random(1)
    extensions = ["jpg", "JPEG", "heic", "png", "dng", "NEF", "cr2"]
    files = sorted(
        {
            (root, f"{folder}{generator.randrange(40)}.{generator.choice(extensions)}")
            for root in ("/a", "/b")
            for folder in ("", "x/", "t.tar/")
            for _ in range(100)
        }
    )
    listing = pa.Table.from_pylist(
        [{"root": root, "path": path} for root, path in files], schema=LISTING
    )
    groups: dict[tuple[str, str], list[str]] = {}
    for root, path in files:
        groups.setdefault((root, path.rsplit(".", 1)[0]), []).append(path)

    def rank(path: str) -> tuple[int, str]:
        kinds = ["jpg|jpeg", "heic", "png", "dng", "nef|cr2"]
        extension = path.rsplit(".", 1)[1].lower()
        return next(n for n, kind in enumerate(kinds) if extension in kind.split("|")), path

    expected = []
    for (root, _), group in groups.items():
        has_a_raw = any(rank(path)[0] > 2 for path in group)
        expected += [(root, path) for path in ([min(group, key=rank)] if has_a_raw else group)]
    kept = first_of_pairs(listing)
    assert list(zip(*kept.select(["root", "path"]).to_pydict().values(), strict=True)) == sorted(
        expected
    )
    assert len(kept) < len(files)
    assert first_of_pairs(listing.slice(0, 0)).num_rows == 0


def test_pairs_first_drops_the_rows_of_the_others(
    small_model: Path, command: Command, tmp_path: Path
) -> None:
    photos, out = make_photos(tmp_path / "p", 2), tmp_path / "l.parquet"
    (photos / "0000.DNG").write_bytes(raw_photo(0))
    (photos / "single.dng").write_bytes(raw_photo(1))
    with tarfile.open(photos / "x.tar", "w") as archive:
        for name in ("1.dng", "1.jpg"):
            member = tarfile.TarInfo(name)
            data = jpeg_preview(photo(2, 160, 120), 1) if name == "1.jpg" else raw_photo(2)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    arguments = (photos, "--out", out, "--model", small_model)
    assert command(*arguments).stdout.startswith("6 found, 6 labelled")
    ran = command(*arguments, "--pairs", "first")
    assert ran.stdout.startswith("4 found, 0 labelled, 4 carried over, 2 gone")
    assert "2 files beside another of the same name left out (--pairs first)\n" in ran.stderr
    assert [row["path"] for row in rows(out)] == [
        "0000.jpg",
        "0001.jpg",
        "single.dng",
        "x.tar/1.jpg",
    ]
    assert command(*arguments, "--pairs", "first").stdout.startswith("nothing changed: 4 found")
    assert command(*arguments).stdout.startswith("6 found, 2 labelled, 4 carried over")
