"""The report: pages that say what the table says, run nothing, ask nobody, and harm no folder."""

import html.parser
import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.job import Job
from jobs.records import canonical_sha256, write_record
from pipeline.errors import LabelImagesError, TableError, UsageError
from pipeline.failures import ERROR_CODES
from pipeline.find.of_rows import sources_of_rows
from pipeline.find.selection import Selection
from pipeline.find.source import Source
from pipeline.library import Settings, label_images
from pipeline.load.thumbnails import SIDE, NoThumbnail, Wanted, _Crew, make_thumbnails, thumbnail
from pipeline.path_names import display
from pipeline.report.advice import ADVICE
from pipeline.report.folder import ReportFolder
from pipeline.report.sampled import Smallest
from pipeline.report.shell import POLICY, percent
from pipeline.report.write import write_report
from pipeline.table.labels import LABELS
from pipeline.table.record import TableRecord
from tests.helpers import Command, make_photos, photo

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


@dataclass
class Page(html.parser.HTMLParser):
    """What a browser would make of a page, as far as it matters here."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.said).split())


def page(folder: Path, name: str = "index.html") -> Page:
    return Page((folder / name).read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_table(
    path: Path,
    rows: list[dict[str, Any]],
    classes: list[str],
    root: str = "/nowhere",
    **fields: Any,
) -> Path:
    """A table of labels of given rows: `path`, and `top` as (class, probability) or `error_code`."""
    decided = {"top_k": 2, "activation": "softmax", **fields}
    errors: dict[str, int] = {}
    table: dict[str, list[Any]] = {name: [] for name in LABELS.schema.names}
    record = TableRecord(
        "plan", "2026-01-02T03:04:05+00:00", "run", "0.1.0", "a model",
        canonical_sha256(decided), decided, [], [root],
    )  # fmt: skip
    for row in rows:
        top = [
            {"label": classes[of], "class_id": of, "probability": p} for of, p in row.get("top", [])
        ]
        code = row.get("error_code")
        if code:
            errors[code] = errors.get(code, 0) + 1
        said = {
            "root": root, "status": "error" if code else "ok", "top_k": top or None,
            "model": "a model", "fingerprint": record.fingerprint, "run_id": "run",
            "labelled_at": 0, **(top[0] if top else {}), **row,
        }  # fmt: skip
        for name, column in table.items():
            column.append(said.get(name))
    with LABELS.writer(path) as writer:
        writer.write_table(pa.table(table, schema=LABELS.schema))
        known = {
            "label_images": json.dumps(record.counting(len(rows), errors).to_json()),
            "label_images_classes": json.dumps(
                [{"class_id": i, "label": label} for i, label in enumerate(classes)]
            ),
        }
        writer.add_key_value_metadata(known)
    return path


@pytest.fixture
def labelled(photos: Path, small_model: Path, tmp_path: Path) -> Path:
    """A table of ten photos and three failures."""
    (photos / "broken.jpg").write_bytes(b"no photo")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "more" / "also broken.jpg").write_bytes(b"no photo either")
    for copy in (photos / "more").glob("0*.jpg"):
        shutil.copy(photos / copy.name, copy)
    label_images(
        Settings(
            paths=(photos,), out=tmp_path / "labels.parquet", model=str(small_model), workers=0
        )
    )
    return tmp_path / "labels.parquet"


# -- What the pages say ------------------------------------------------------------------------


def test_the_pages_say_what_the_table_says(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    written = write_report(labelled, out)
    assert (written.rows, written.photos, written.missing) == (13, 10, {})
    rows = [row for row in pq.read_table(labelled).to_pylist() if row["status"] == "ok"]
    overview = page(out)
    assert "10 photos labelled" in overview.words
    assert "3 failed" in overview.words or "failed 3" in overview.words
    assert "not_an_image" in overview.words
    assert "Copy it once more" in overview.words  # what to do about an empty file
    for label in {row["label"] for row in rows}:
        of = [row for row in rows if row["label"] == label]
        (name,) = [
            f"labels/{path.name}"
            for path in (out / "labels").iterdir()
            if path.name.startswith(f"{of[0]['class_id']}-")
        ]
        shown = page(out, name)
        assert f"{len(of)} photo" in shown.words
        for row in of:
            assert row["path"] in shown.words
        assert len(shown.all("img")) == len(of) + 1  # and the one of the dialog
    failures = page(out, "failures.html")
    assert "more/also broken.jpg" in failures.words
    assert "3 of 13 photos have no label, for 2 reasons" in failures.words
    folders = page(out, "folders.html").words
    assert re.search(rf"{re.escape(str(tmp_path))}/photos 9 2 \d+% ", folders)
    assert re.search(rf"{re.escape(str(tmp_path))}/photos/more 4 1 \d+% ", folders)


def test_each_link_and_picture_of_each_page_is_there(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(labelled, out)
    for path in out.rglob("*.html"):
        shown = Page(path.read_text())
        places = [tag.get("href") for tag in shown.all("a") + shown.all("link")]
        places += [tag.get("src") for tag in shown.all("img") + shown.all("script")]
        for place in filter(None, places):
            target, _, name = place.partition("#")
            assert (path.parent / target).is_file() or not target, (path, place)
            if name and target:
                assert f'id="{name}"' in (path.parent / target).read_text()
        for image in shown.all("img"):
            assert image["alt"] is not None


def test_the_most_and_the_least_certain_are_shown_and_the_numbers_are_of_all(
    tmp_path: Path,
) -> None:
    rows = [
        {"path": f"{i:05}.jpg", "top": [(i % 2, 0.5 + i / 4000), (2, 0.1)]} for i in range(1000)
    ]
    table = make_table(tmp_path / "t.parquet", rows, ["cat", "dog", "cow"])
    written = write_report(table, tmp_path / "report")
    assert written.missing == {"not_found": written.photos}
    shown = page(tmp_path / "report", "labels/0-cat.html")
    assert "500 photos, 50.0% of the labelled" in shown.words
    assert len([tag for tag in shown.all("li") if tag.get("class") == "photo"]) == 200
    assert "00998.jpg" in shown.words  # the most certain
    assert "00000.jpg" in shown.words  # the least
    assert "00500.jpg" not in shown.words
    assert shown.words.index("00998.jpg") < shown.words.index("00996.jpg")
    assert shown.words.index("00000.jpg") < shown.words.index("00002.jpg")


def test_the_doubtful_are_those_between_two_classes(tmp_path: Path) -> None:
    rows = [
        {"path": "sure.jpg", "top": [(0, 0.9), (1, 0.05)]},
        {"path": "torn.jpg", "top": [(0, 0.41), (1, 0.40)]},
        {"path": "weak.jpg", "top": [(1, 0.3), (0, 0.1)]},
    ]
    table = make_table(tmp_path / "t.parquet", rows, ["cat", "dog"])
    write_report(table, tmp_path / "report")
    words = page(tmp_path / "report", "doubtful.html").words
    assert "Of 1 photo, 33.3% of the labelled" in words
    assert words.index("torn.jpg") < words.index("weak.jpg") < words.index("sure.jpg")


def test_of_sigmoids_the_doubtful_are_those_near_half(tmp_path: Path) -> None:
    rows = [
        {"path": "two right.jpg", "top": [(0, 0.99), (1, 0.98)]},
        {"path": "none right.jpg", "top": [(0, 0.02), (1, 0.01)]},
        {"path": "half.jpg", "top": [(1, 0.52), (0, 0.1)]},
    ]
    table = make_table(tmp_path / "t.parquet", rows, ["cat", "dog"], activation="sigmoid")
    write_report(table, tmp_path / "report")
    words = page(tmp_path / "report", "doubtful.html").words
    assert "Of 1 photo," in words
    assert words.index("half.jpg") < words.index("none right.jpg")
    assert "each by itself (sigmoid)" in page(tmp_path / "report").words


def test_one_class_a_photo_says_that_there_is_no_second(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.parquet", [{"path": "a", "top": [(0, 0.9)]}], ["cat"], top_k=1)
    write_report(table, tmp_path / "report")
    assert "--top-k 2" in page(tmp_path / "report", "doubtful.html").words


@pytest.mark.parametrize("rows", [[], [{"path": "a.jpg", "error_code": "corrupt"}]])
def test_a_table_without_labels_has_a_report(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = make_table(tmp_path / "t.parquet", rows, ["cat"])
    write_report(table, tmp_path / "report")
    assert "0 photos labelled" in page(tmp_path / "report").words


def test_very_many_labels_have_lists_and_no_page_grows_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.pages.MOST_LABEL_PAGES", 20)
    classes = [f"a class with a rather long name, number {i}" for i in range(21_000)]
    rows = [{"path": f"{i:06}.jpg", "top": [(i, 0.5), (0, 0.1)]} for i in range(8_020)]
    table = make_table(tmp_path / "t.parquet", rows, classes)
    written = write_report(table, tmp_path / "report", n_photos=50)
    assert len(list((tmp_path / "report" / "labels").iterdir())) == 20
    assert "4,000 rarer labels" in page(tmp_path / "report", "labels.html").words
    assert "number 8019" in page(tmp_path / "report", "labels-3.html").words
    assert max(path.stat().st_size for path in (tmp_path / "report").rglob("*.html")) < 1 << 20
    assert written.labels == 8020


def test_each_label_shows_two_photos_whatever_was_asked_for(
    tmp_path: Path, command: Command
) -> None:
    rows = [{"path": f"{i:03}.jpg", "top": [(i % 30, 0.5 + i / 400)]} for i in range(120)]
    table = make_table(tmp_path / "t.parquet", rows, [str(i) for i in range(30)], top_k=1)
    assert write_report(table, tmp_path / "report", n_photos=10).photos == 60
    assert "two of each is the least" in " ".join(command("report", "--help").stdout.split())


def test_every_failure_comes_with_advice() -> None:
    assert ADVICE.keys() == ERROR_CODES.keys()


def test_shares_are_never_said_to_be_all_or_none_when_they_are_not() -> None:
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == [
        "0%", "<1%", "50%", ">99%", "100%",
    ]  # fmt: skip
    assert percent(0.9999, 1) == ">99.9%"


def test_the_smallest_are_the_same_whatever_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    classes, values = generator.integers(0, 5, 3000), generator.integers(0, 50, 3000) / 50
    monkeypatch.setattr("pipeline.report.sampled._PRUNE_FROM", 40)
    found = Smallest(7)
    for start in range(0, 3000, 100):
        piece = slice(start, start + 100)
        found.add(classes[piece], values[piece], np.arange(start, start + 100))
    for each in range(5):
        order = sorted(np.flatnonzero(classes == each), key=lambda row: (values[row], row))
        assert found.of(each, 7) == order[:7]
    assert found.of(5, 7) == []


# -- What a photo, its name or a label can do --------------------------------------------------


def evil_photos(folder: Path) -> None:
    """Photos whose names would be markup, where a page took them for it."""
    (folder / '"><img src=x onerror=alert(1)>').mkdir(parents=True)
    make_photos(folder, 1)
    (folder / "0000.jpg").rename(folder / "<script>alert(1)<\u2215script>.jpg")
    photo(3).save(folder / '"><img src=x onerror=alert(1)>' / "a\n\u202ejpg.exe.jpg")
    script = folder / "<script>alert(1)<"
    script.mkdir()
    photo(4).save(script / "script>.jpg")  # as a path: <script>alert(1)</script>.jpg
    (folder / "<b>broken.jpg").write_bytes(b"<script>alert(1)</script>")


def evil_model(small_model: Path, folder: Path) -> Path:
    """The small model with markup for labels."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((small_model / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps(config)
    for i in range(10):
        text = text.replace(f'"class {i}"', json.dumps(f"{EVIL} {i}"))
    (folder / "config.json").write_text(text)
    return folder


@pytest.fixture
def evil_report(small_model: Path, tmp_path: Path) -> Path:
    evil_photos(tmp_path / "photos")
    model = evil_model(small_model, tmp_path / "model")
    out = tmp_path / "<script>alert(1)<.parquet"
    label_images(Settings(paths=(tmp_path / "photos",), out=out, model=str(model), workers=0))
    write_report(out, tmp_path / "report")
    return tmp_path / "report"


def test_markup_in_names_and_labels_is_text(evil_report: Path) -> None:
    seen = ""
    for path in evil_report.rglob("*.html"):
        shown = Page(path.read_text())
        seen += shown.words
        assert [tag.get("src") for tag in shown.all("script")] == [
            f"{'../' * (len(path.relative_to(evil_report).parts) - 1)}assets/{script.name}"
            for script in (evil_report / "assets").glob("*.js")
        ]
        for _, attributes in shown.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert "javascript:" not in str(attributes.values())
        policies = [
            tag["content"]
            for tag in shown.all("meta")
            if tag.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policies == [POLICY]
        assert not shown.all("style")
        assert "\u202e" not in path.read_text()
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert EVIL in seen
    assert "<script>alert(1)</script>.jpg" in seen
    assert "<b>broken.jpg" in seen


def test_names_of_files_are_never_those_of_photos(evil_report: Path) -> None:
    names = files_of(evil_report)
    assert names
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./"), name


def test_a_thumbnail_has_none_of_the_photos_metadata(tmp_path: Path) -> None:
    image = photo(1, 900, 600)
    exif = image.getexif()
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}  # where it was taken
    exif[0x010E] = "a secret"
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, comment=b"a secret", icc_profile=b"a secret profile")
    made = thumbnail(data.getvalue())
    assert isinstance(made, bytes)
    assert b"secret" not in made
    opened = Image.open(io.BytesIO(made))
    assert not opened.getexif()
    assert opened.size == (SIDE, SIDE * 600 // 900)


# -- Thumbnails --------------------------------------------------------------------------------


def test_thumbnails_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), "blue")
    image.paste("red", (0, 0, 100, 200))  # on the left; turned by 90 degrees it is above
    exif = image.getexif()
    exif[274] = 6
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    made = thumbnail(data.getvalue())
    assert isinstance(made, bytes)
    upright = Image.open(io.BytesIO(made))
    assert upright.size == (SIDE // 2, SIDE)
    assert upright.getpixel((80, 10))[0] > 200  # type: ignore[index]
    assert upright.getpixel((80, 300))[2] > 200  # type: ignore[index]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "F", "1"])
def test_thumbnails_of_all_kinds_of_pixels(mode: str) -> None:
    image = photo(2).convert("L" if mode in ("I;16", "F") else "RGB").convert(mode)
    data = io.BytesIO()
    image.save(data, "TIFF")
    assert isinstance(thumbnail(data.getvalue()), bytes)


def test_a_bomb_a_crash_and_a_hang_cost_themselves_a_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["good", "bomb", "crash", "hang", "text", "last"]
    wanted = [Wanted(Source(os.fsencode(tmp_path / name))) for name in names]
    for name in names:
        photo(1).save(tmp_path / name, "PNG")
    (tmp_path / "text").write_bytes(b"text")
    Image.new("1", (15_000, 15_000)).save(tmp_path / "bomb", "PNG")
    really = thumbnail

    def odd(data: bytes) -> Any:
        if data == (tmp_path / "crash").read_bytes() and crashing.is_set():
            os._exit(3)
        if data.endswith(b"hang"):
            threading.Event().wait()
        return really(data)

    crashing = threading.Event()
    crashing.set()
    with (tmp_path / "hang").open("ab") as file:
        file.write(b"hang")
    photo(2).save(tmp_path / "crash", "PNG")
    monkeypatch.setattr("pipeline.load.thumbnails.thumbnail", odd)  # in the forked processes, too
    made = dict(make_thumbnails(wanted, workers=2, limit_s=1.5))
    codes = {
        names[number]: made.code if isinstance(made, NoThumbnail) else "made"
        for number, made in made.items()
    }
    assert codes == {
        "good": "made",
        "bomb": "too_many_pixels",
        "crash": "decoder_crash",
        "hang": "timeout",
        "text": "not_an_image",
        "last": "made",
    }


def test_where_all_hang_the_rest_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(1).save(tmp_path / "a.png")
    monkeypatch.setattr("pipeline.load.thumbnails.thumbnail", lambda data: os._exit(3))
    monkeypatch.setattr("pipeline.load.thumbnails._MOST_LOST", 3)
    wanted = [Wanted(Source(os.fsencode(tmp_path / "a.png")))] * 20
    made = dict(make_thumbnails(wanted, workers=2))
    assert len(made) == 20
    assert {each.code for each in made.values() if isinstance(each, NoThumbnail)} == {
        "decoder_crash",
        "not_tried",
    }


def test_another_photo_by_now_is_not_shown_under_the_old_label(
    labelled: Path, photos: Path, tmp_path: Path
) -> None:
    photo(99).save(photos / "0005.jpg")  # the others are in more/, too: the same photos
    (photos / "0006.jpg").unlink()
    (photos / "0001.jpg").unlink()
    written = write_report(labelled, tmp_path / "report")
    assert written.missing == {"changed": 1, "not_found": 1}
    words = " ".join(page(tmp_path / "report", f"labels/{path.name}").words
                     for path in (tmp_path / "report" / "labels").iterdir())  # fmt: skip
    assert "changed since" in words
    assert "no longer there" in words
    assert "1 changed" in page(tmp_path / "report").words


def test_photos_in_archives_and_tables_are_found(
    small_model: Path, tmp_path: Path, photos: Path
) -> None:
    data = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    folder = tmp_path / "packed"
    (folder / "called.tar").mkdir(parents=True)  # a folder that is called like an archive
    (folder / "called.tar" / "a.jpg").write_bytes(data[6])
    with tarfile.open(folder / "one.TAR", "w") as archive:
        for name in ("./sub/a.jpg", "caf\udce9.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(data[0])
            archive.addfile(member, io.BytesIO(data[0]))
    keyed = {"id": ["x", "y"], "image": [data[1], data[2]]}
    pq.write_table(pa.table(keyed), folder / "below.parquet")
    pq.write_table(
        pa.table({"id": ["a", "b"], "image": [data[3], data[4]]}), tmp_path / "named.parquet"
    )
    for key in (None, "id"):
        out = tmp_path / f"{key}.parquet"
        label_images(
            Settings(
                paths=(folder, tmp_path / "named.parquet"), out=out, model=str(small_model),
                workers=0, image_column="image", key_column=key,
            )
        )  # fmt: skip
        written = write_report(out, tmp_path / f"report-{key}")
        assert (written.rows, written.missing, written.photos) == (7, {}, 7)


def test_a_photo_whose_row_has_no_hash_is_known_by_size_and_time(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    with tarfile.open(folder / "one.tar", "w") as archive:
        archive.add(folder / "0000.jpg", "a.jpg")
    size = (folder / "0000.jpg").stat().st_size

    def row(name: str, file: str, size: int | None = None) -> dict[str, Any]:
        status = (folder / file).stat()
        mtime = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            microseconds=status.st_mtime_ns // 1000
        )
        said = {"size_bytes": size or status.st_size, "mtime": mtime, "top": [(0, 0.5)]}
        return {"path": name, **said}

    rows = [row(name, name) for name in ("0000.jpg", "0001.jpg", "0002.jpg")]
    rows += [row("one.tar/a.jpg", "one.tar", size)]
    table = make_table(tmp_path / "t.parquet", rows, ["cat"], str(folder))
    assert write_report(table, tmp_path / "as-found").missing == {}
    photo(99).save(folder / "0001.jpg")
    os.utime(folder / "0002.jpg", (1, 1))
    assert write_report(table, tmp_path / "later").missing == {"changed": 2}
    os.utime(folder / "one.tar", (1, 1))
    assert write_report(table, tmp_path / "still-later").missing == {"changed": 3}


def test_a_table_of_images_with_other_columns_by_now_costs_its_own_thumbnails(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"other": [b"x"]}), tmp_path / "t.parquet")
    monkeypatch.setattr("pipeline.load.thumbnails._MOST_LOST", 2)
    gone = Wanted(Source(os.fsencode(tmp_path / "t.parquet"), True, 0, None, "image"))
    wanted = [gone, gone, gone, Wanted(Source(os.fsencode(photos / "0000.jpg")))]
    made = dict(make_thumbnails(wanted, workers=1))
    codes = [each.code for each in made.values() if isinstance(each, NoThumbnail)]
    assert codes == ["read_error"] * 3
    assert isinstance(made[3], bytes)
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_that_cannot_be_killed_is_not_waited_for_without_end() -> None:
    class Stuck:
        waited: float | None = None

        def kill(self) -> None:
            pass

        def join(self, timeout: float | None = None) -> None:
            self.waited = timeout

    process, crew = Stuck(), _Crew([], 1.0)
    pipe = io.BytesIO()
    crew.at[pipe] = (None, 0.0, process)
    crew.end()
    assert process.waited is not None


@pytest.mark.parametrize("folder", ["\u0130\u0130\u0130", "plain"])  # lower(): two characters each
def test_names_that_grow_in_lower_case_are_found(folder: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    with tarfile.open(tmp_path / folder / "one.TAR", "w") as archive:
        archive.add(photos / "0000.jpg", "a.jpg")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / folder / "t.Parquet")
    names = ("one.TAR/a.jpg", "t.Parquet/000000000")
    rows = [(str(tmp_path), f"{folder}/{name}") for name in names]
    archived, in_table = sources_of_rows(rows, Selection(image_column="image"))
    assert archived is not None
    assert archived.offset
    assert in_table is not None
    assert in_table.column == "image"


# -- The folder --------------------------------------------------------------------------------


def test_once_more_gives_the_same_and_decodes_nothing(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert write_report(labelled, out).made == 7  # three are the same photos as others
    before = files_of(out)
    stamps = {path: path.stat().st_ino for path in out.rglob("*.html")}
    assert write_report(labelled, out).made == 0
    assert files_of(out) == before
    assert {path: path.stat().st_ino for path in out.rglob("*.html")} == stamps
    write_report(labelled, tmp_path / "other")
    assert files_of(tmp_path / "other") == before


def test_what_no_page_shows_any_more_is_removed_and_nothing_else(
    labelled: Path, photos: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    write_report(labelled, out)
    (out / "mine.html").write_text("mine")
    (out / "thumbs" / "mine.jpg").write_text("mine")
    thumbs = {path.name for path in (out / "thumbs").iterdir()}
    for path in photos.glob("*.jpg"):
        path.unlink()
    label_images(Settings(paths=(photos,), out=labelled, model=str(small_model), workers=0))
    write_report(labelled, out)
    assert {path.name for path in (out / "thumbs").iterdir()} == thumbs  # a reader may have a page
    pages = {path.name for path in (out / "labels").iterdir()}
    write_report(labelled, out)
    left = {path.name for path in (out / "thumbs").iterdir()}
    assert "mine.jpg" in left
    assert len(left) == 3 + 1
    assert (out / "mine.html").read_text() == "mine"
    fresh = tmp_path / "fresh"
    write_report(labelled, fresh)
    assert pages == {path.name for path in (fresh / "labels").iterdir()}


def test_a_folder_that_is_no_report_is_not_touched(labelled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(TableError, match="nothing of it is touched"):
        write_report(labelled, other)
    assert files_of(other) == {"index.html": b"mine"}
    with pytest.raises(TableError, match="is a file"):
        write_report(labelled, other / "index.html")


def test_a_marker_that_was_tampered_with_removes_nothing_of_others(
    labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    write_report(labelled, out)
    victim = tmp_path / "victim.html"
    victim.write_text("mine")
    names = ["../victim.html", "/etc/hostname", "labels/../../victim.html"]
    write_record(out / "report.json", 1, {"files": names, "old": names})
    write_report(labelled, out)
    assert victim.read_text() == "mine"
    (out / "report.json").write_text('{"version": 1}')
    with pytest.raises(TableError, match="damaged"):
        write_report(labelled, out)


def test_nothing_is_written_through_links(labelled: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "report"
    ReportFolder(out).finish()
    (out / "thumbs").symlink_to(elsewhere)
    with pytest.raises(TableError, match="is a link"):
        write_report(labelled, out)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["assets", "labels", "thumbs"])
def test_a_link_to_another_reports_folder_takes_nothing_of_it(
    labelled: Path, tmp_path: Path, name: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_report(labelled, one)
    ReportFolder(two).finish()
    (two / name).symlink_to(one / name)
    before = files_of(one)
    for _ in range(2):  # what is no longer shown goes one report later
        with pytest.raises(TableError, match="is a link"):
            ReportFolder(two).finish()
    assert files_of(one) == before
    (two / name).unlink()
    (two / name).write_text("mine")
    with pytest.raises(TableError, match="is a file"):
        write_report(labelled, two)


def test_a_marker_names_nothing_in_other_folders(tmp_path: Path) -> None:
    out = tmp_path / "report"
    ReportFolder(out).finish()
    (out / "mine").mkdir()
    (out / "mine" / "notes.html").write_text("mine")
    write_record(out / "report.json", 1, {"files": ["mine/notes.html"], "old": []})
    ReportFolder(out).finish()
    assert (out / "mine" / "notes.html").exists()


def test_links_lead_no_report_among_the_photos(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "top": [(0, 0.5)]}]
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    elsewhere = tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    (tmp_path / "link").symlink_to(folder)
    (folder / "away").symlink_to(elsewhere)
    of_folder, of_link = (
        make_table(tmp_path / f"{number}.parquet", rows, ["cat"], display(root), top_k=1)
        for number, root in enumerate((folder, tmp_path / "link"))
    )
    for table, out in (
        (of_folder, folder / "report"),
        (of_folder, tmp_path / "link" / "report"),
        (of_folder, folder / "away" / "report"),  # a run goes there by the link
        (of_link, folder / "report"),
    ):
        with pytest.raises(UsageError, match="among the photos"):
            write_report(table, out)
    write_report(of_folder, tmp_path / "report")


def test_a_report_in_the_embeddings_is_refused(
    photos: Path, small_model: Path, tmp_path: Path, command: Command
) -> None:
    out, beside = tmp_path / "l.parquet", tmp_path / "emb"
    words = (photos, "--out", out, "--model", small_model, "--embeddings", beside)
    for place in (beside, beside / "report"):
        ran = command(*words, "--report", place)
        assert (ran.returncode, "embeddings" in ran.stderr) == (2, True), ran.stderr
        assert not out.exists()
    assert command(*words).returncode == 0
    with pytest.raises(UsageError, match="embeddings"):
        write_report(out, beside / "report")


def test_a_report_among_the_photos_is_refused(labelled: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="among the photos"):
        write_report(labelled, photos / "report")
    assert not (photos / "report").exists()


def test_a_reader_meets_whole_pages_only(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at each file in turn: what is there is whole, and all that index.html leads to."""
    out = tmp_path / "report"
    writes = allowed = 0
    really: Callable[[Any, Any], None] = os.replace

    def failing(source: Any, target: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > allowed and str(target).startswith(str(out)):
            raise OSError(28, "No space left on device")
        really(source, target)

    for limit in range(2, 40, 3):
        writes, allowed = 0, limit
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                write_report(labelled, out)
            except TableError:
                assert not list(out.rglob("*.tmp"))
        if (out / "index.html").exists():
            for tag in page(out).all("a"):
                assert (out / (str(tag["href"]).partition("#")[0] or "index.html")).is_file()
    write_report(labelled, out)
    write_report(labelled, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


# -- The command, and --report on a run --------------------------------------------------------


def test_the_command(labelled: Path, tmp_path: Path, command: Command) -> None:
    ran = command("report", labelled, "--out", tmp_path / "report", "--photos", 4)
    assert ran.returncode == 0
    assert "report of 13 rows" in ran.stdout
    assert page(tmp_path / "report").words
    ran = command("report", tmp_path / "none.parquet", "--out", tmp_path / "report")
    assert ran.returncode == 2
    assert "there is no table" in ran.stderr
    ran = command("report", labelled, "--out", tmp_path / "photos")
    assert ran.returncode == 2


def test_a_run_makes_its_report(
    photos: Path, small_model: Path, tmp_path: Path, command: Command
) -> None:
    words = (photos, "--out", tmp_path / "l.parquet", "--model", small_model, "--report")
    assert command(*words, tmp_path / "report").returncode == 0
    assert "10 photos labelled" in page(tmp_path / "report").words
    assert "Last runs" in page(tmp_path / "report").words
    ran = command(*words, tmp_path / "report")  # nothing changed but the list of runs
    assert ran.returncode == 0
    assert "0 thumbnails made" in ran.stderr


def test_a_run_refuses_a_folder_that_is_none_before_it_labels(
    photos: Path, small_model: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "l.parquet"
    for place, code in ((photos / "report", 2), (tmp_path, 5), (out, 2)):
        ran = command(photos, "--out", out, "--model", small_model, "--report", place)
        assert ran.returncode == code, place
        assert not out.exists()


def test_a_run_refuses_where_no_report_can_be_before_it_labels(
    photos: Path, small_model: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "l.parquet"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    ReportFolder(tmp_path / "report").finish()
    (tmp_path / "report" / "labels").write_text("mine")
    for name, why in (
        ("dangling", "leads nowhere"),
        ("report", "is a file"),
        ("x" * 300, "is too long"),
    ):
        ran = command(photos, "--out", out, "--model", small_model, "--report", tmp_path / name)
        assert (ran.returncode, why in ran.stderr) == (5, True), ran.stderr
        assert not out.exists()


def test_report_goes_with_a_table(photos: Path, tmp_path: Path, command: Command) -> None:
    ran = command(photos / "0000.jpg", "--report", tmp_path / "report")
    assert (ran.returncode, "name one with --out" in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize(
    "error",
    [
        IsADirectoryError(21, "Is a directory"),
        pa.ArrowInvalid("damaged"),
        UsageError("among the photos"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_report_fails_for_the_run_says_how_it_ended(
    photos: Path,
    small_model: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    add_to_history = Job.add_to_history

    def failing(*_: object) -> None:
        raise error

    def full(job: Job, run: dict[str, Any], *arguments: Any) -> None:
        if "its report is not" in run["message"]:
            raise OSError(28, "No space left on device")
        add_to_history(job, run, *arguments)

    monkeypatch.setattr("pipeline.run.write_report", failing)
    monkeypatch.setattr(Job, "add_to_history", full)
    out = tmp_path / "l.parquet"
    ran = command(photos, "--out", out, "--model", small_model, "--report", tmp_path / "report")
    assert ran.returncode == 5, ran.stderr
    assert "10 labelled" in ran.stdout
    assert "the table is written, its report is not" in ran.stderr


def test_what_the_disk_refuses_is_an_error_with_a_reason(
    labelled: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "report"
    write_report(labelled, out)
    (out / "index.html").unlink()
    (out / "index.html").mkdir()
    with pytest.raises(TableError, match="cannot be made"):
        write_report(labelled, out)
    assert command("report", labelled, "--out", out).returncode == 5


def test_a_report_that_fails_costs_no_table(
    photos: Path,
    small_model: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "l.parquet"
    words = (photos, "--out", out, "--model", small_model, "--report", tmp_path / "report")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.report.folder._replace", full)
        ran = command(*words)
    assert ran.returncode == 5
    assert "the table is written, its report is not" in ran.stderr
    assert "No space left" in ran.stderr
    assert "10 labelled" in ran.stdout
    assert pq.read_metadata(out).num_rows == 10
    runs = json.loads(command("status", out, "--json").stdout)["runs"]
    assert runs[-1]["exit_code"] == 5
    ran = command(*words)
    assert ran.returncode == 0
    assert "nothing changed" in ran.stdout


def test_a_table_that_is_replaced_meanwhile_is_read_as_it_was(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.report.write as module

    really = module.count

    def replaced(*arguments: Any) -> Any:
        counted = really(*arguments)
        make_table(tmp_path / "new.parquet", [{"path": "x", "top": [(0, 0.9)]}], ["cat"])
        os.replace(tmp_path / "new.parquet", labelled)
        return counted

    monkeypatch.setattr(module, "count", replaced)
    assert write_report(labelled, tmp_path / "report").rows == 13
    assert "class" in page(tmp_path / "report", "labels.html").words


def test_a_damaged_table_is_an_error_with_a_reason(labelled: Path, tmp_path: Path) -> None:
    data = bytearray(labelled.read_bytes())
    for place in range(100, 2000):
        data[place] ^= 0xFF
    labelled.write_bytes(data)
    with pytest.raises(LabelImagesError, match="damaged"):
        write_report(labelled, tmp_path / "report")
