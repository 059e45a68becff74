"""The pages of `diff --report`: what they say, what they show, and where they may be."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabelImagesError
from pipeline.report.diff_pages import write_diff_pages
from pipeline.report.folder import ReportFolder
from pipeline.report.photos import Thumbnails
from pipeline.report.shell import POLICY
from pipeline.report.tally import compare_tables
from tests.helpers import Command, make_photos, photo
from tests.test_diff import AT, CLASSES, Row, row, write

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EVIL = "<script>alert(1)</script>.jpg"


def labelled(path: str, label: str | None, root: Path, probability: float = 0.5) -> Row:
    """A row with a second class, as a run writes it; its file is not what it says it is of."""
    best = [
        {"label": label, "class_id": 0, "probability": probability},
        {"label": "second <b>", "class_id": 1, "probability": 0.125},
    ]
    values = {} if label is None else {"probability": probability, "top_k": best}
    return row(path, label, root=str(root), content_hash=None, size_bytes=1, **values)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Of eight photos; one has a name with markup in it, and a label with it."""
    folder = make_photos(tmp_path / "photos", 6)
    (folder / EVIL).parent.mkdir()  # with a slash it is a file in a folder
    photo(7).save(folder / EVIL)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    classes = (*CLASSES, "<img src=x onerror=alert(1)>")
    old = [labelled(name, "cat", folder, 0.25) for name in names]
    new = [labelled(name, "dog", folder, 0.75) for name in names]
    new[0] = labelled(names[0], None, folder)
    old[1] = labelled(names[1], None, folder)
    new[-1] = labelled(names[-1], classes[-1], folder)
    for rows in (old, new):
        for each in rows:
            status = (folder / each["path"]).stat()
            each["size_bytes"] = status.st_size
            each["mtime"] = EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    return (
        write(tmp_path / "old.parquet", old, classes),
        write(tmp_path / "new.parquet", new, classes),
    )


def pages(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.glob("*.html")}


def test_the_photos_are_shown_with_what_both_tables_say(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "pages"
    ran = command("diff", *tables, "--report", f"{out}/")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(f"pages -> {out}/index.html\n")
    found = pages(out)
    assert found.keys() == {"index.html", "changes.html", "failures.html"}
    index, changes, failures = (found[f"{name}.html"] for name in ("index", "changes", "failures"))
    assert "<h1>5 labels changed</h1>" in index
    assert "100.0% of 5 photos" in index
    assert "mean confidence, was 25%" in index
    assert "<td><code>ok</code> → <code>corrupt</code></td>" in index
    assert "<bdi>cat</bdi>" in changes
    tile = re.search(r'<li class="photo".*?</li>\n  </?', changes, re.S)
    assert tile
    assert "<bdi>cat</bdi> <b>25%</b> → <bdi>dog</bdi> <b>75%</b>" in tile[0]
    (first, *_) = re.findall(r'<div class="peek">.*?</div></div>', changes, re.S)
    assert first.index("Before") < first.index("25.0%") < first.index("Now") < first.index("75.0%")
    assert "second &lt;b&gt;" in first
    assert 'id="failed"' in failures
    assert 'id="mended"' in failures
    shown = set(re.findall(r'src="(thumbs/[0-9a-f]+\.jpg)"', changes + failures))
    assert shown == {f"thumbs/{path.name}" for path in (out / "thumbs").iterdir()}
    assert shown, "photos are shown"


def test_nothing_in_a_name_or_a_label_can_run(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    command("diff", *tables, "--report", tmp_path / "pages")
    for text in pages(tmp_path / "pages").values():
        assert POLICY.replace("'", "&#39;") in text
        assert not re.search(r"<script(?! src=\"assets/)|<img src=x|\son\w+=\"|https?://", text)
    changes = (tmp_path / "pages" / "changes.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in changes
    assert "&lt;script&gt;alert(1)" in changes


def test_the_same_command_again_keeps_the_thumbnails(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "pages"
    command("diff", *tables, "--report", out)
    before = {path.name: path.stat().st_ino for path in (out / "thumbs").iterdir()}
    (out / "old.html").write_text("not ours")
    assert command("diff", *tables, "--report", out, "--json").returncode == 0
    assert {path.name: path.stat().st_ino for path in (out / "thumbs").iterdir()} == before
    assert (out / "old.html").exists()


def test_places_that_pages_may_not_be_in(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for place, code in ((other, 5), (tables[0], 2), (tmp_path / "no" / "pages", 2)):
        ran = command("diff", *tables, "--report", place, "--out", tmp_path / "rows.parquet")
        assert ran.returncode == code, ran.stderr
    assert [path.name for path in other.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "rows.parquet").exists(), "refused before anything is done"


def test_pages_of_a_report_and_of_a_diff_replace_each_other_never(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    of_diff, of_report = tmp_path / "diff", tmp_path / "report"
    assert command("diff", *tables, "--report", of_diff).returncode == 0
    before = pages(of_diff)
    ran = command("report", tables[1], "--out", of_diff)
    assert (ran.returncode, "`label-images diff`" in ran.stderr) == (5, True), ran.stderr
    assert pages(of_diff) == before
    ReportFolder(of_report).finish()
    ran = command("diff", *tables, "--report", of_report)
    assert (ran.returncode, "`label-images report`" in ran.stderr) == (5, True), ran.stderr
    assert not pages(of_report)


def test_the_command_may_say_how_to_connect_to_the_photos(
    tables: tuple[Path, Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def make_missing(*arguments: Any) -> Thumbnails:
        given.extend(arguments[3])
        return Thumbnails({})

    monkeypatch.setattr("pipeline.report.diff_pages.make_missing", make_missing)
    words = ("diff", *tables, "--photos-in", tmp_path / "photos")
    assert command(*words, "--report", tmp_path / "pages").returncode == 0
    assert given[0] == tmp_path / "photos"
    ran = command(*words)
    assert (ran.returncode, "--photos-in" in ran.stderr) == (2, True)


def test_a_table_that_is_replaced_meanwhile_is_noticed(
    tables: tuple[Path, Path], tmp_path: Path
) -> None:
    found = compare_tables(*tables)
    replaced = write(tables[1], [row("a", mtime=AT)])
    assert replaced == tables[1]
    with pytest.raises(LabelImagesError, match="replaced"):
        write_diff_pages(found, tmp_path / "pages")


def test_tables_of_other_classes_and_tables_without_rows(
    tables: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "pages"
    other = write(tmp_path / "other.parquet", [row("a", "puma")], ("puma",))
    assert command("diff", tables[0], other, "--report", out).returncode == 0
    assert "<h1>Labels are not compared</h1>" in (out / "index.html").read_text()
    nothing = write(tmp_path / "nothing.parquet", [])
    assert command("diff", nothing, nothing, "--report", out).returncode == 0
    assert "<h1>No labels to compare</h1>" in (out / "index.html").read_text()
    assert "None gained, none lost." in (out / "failures.html").read_text()


def test_pages_stay_small(command: Command, tmp_path: Path) -> None:
    classes = tuple(f"a class with a rather long name, {number:03}" for number in range(300))
    name = "folder/" * 20
    root = tmp_path / "gone"
    old, new = [], []
    for number in range(3000):
        path = f"{name}{number:05}.jpg"
        old.append(labelled(path, classes[number % 300], root))
        new.append(labelled(path, classes[(number + 1) % 300], root))
    pair = [
        write(tmp_path / f"{place}.parquet", rows, classes) for place, rows in enumerate((old, new))
    ]
    out = tmp_path / "pages"
    assert command("diff", *pair, "--report", out).returncode == 0
    sizes: dict[str, Any] = {path.name: path.stat().st_size for path in out.glob("*.html")}
    assert max(sizes.values()) < 1_000_000, sizes
    assert "no longer there" in (out / "changes.html").read_text()
