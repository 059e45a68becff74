"""Every block of code in README and docs that can run is run: one page after the other, each in a
folder of its own, which has a labelled table already, and block after block as its reader would.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from tests.conftest import FORCED_PRECISION
from tests.doc_pages import DOCS, PAGES, Block, blocks, name_of
from tests.helpers import ROOT, Command
from tests.page_shell import Shell, copy_of

RUNNABLE = [page for page in PAGES if any(block.is_run for block in blocks(page))]
CLOSE = 0.02  # bf16 differs from fp32 by as much


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pages call /data, and beside it the table that all of them begin with."""
    folder = tmp_path_factory.mktemp("docs")
    ignored = shutil.ignore_patterns("*.md")
    shutil.copytree(ROOT / "examples" / "photos", folder / "data" / "photos", ignore=ignored)
    (folder / "data" / "more").mkdir()
    shutil.copy(ROOT / "examples" / "photos" / "coffee.jpg", folder / "data" / "more" / "cup.jpg")
    (folder / "data" / "mark").touch()
    os.utime(folder / "data" / "mark", (0, 0))
    (folder / "tables").mkdir()
    with contextlib.chdir(folder / "tables"):  # the table's place, as `status` shows it
        out = Path("labels.parquet")
        paths = (folder / "data" / "photos",)
        run(Settings(paths=paths, out=out, workers=0, precision=FORCED_PRECISION), Console())
    return folder


@pytest.fixture
def shell(library: Path, tmp_path: Path, command: Command) -> Shell:
    folder = tmp_path / "cwd"
    folder.mkdir()
    copy_of(library / "tables", folder)
    return Shell(folder, library / "data", command)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shell.folder)
    answers: list[list[tuple[str, ...]]] = []
    for block in blocks(page):
        if block.is_run:
            shell.prepare(block.comments.get("before", ""))
        if block.language == "text" and "│" in block.text and answers:
            assert any(is_shown(block.text, rows) for rows in answers), f"{block.place}: {answers}"
        elif not block.is_run:
            continue
        elif block.language == "sql":
            answers = list(ask(block))
        elif block.language == "python":
            capsys.readouterr()
            exec(compile(block.text, block.place, "exec"), {})
            printed = capsys.readouterr().out
            assert printed.strip(), block.place
            for told in re.findall(r"# (\d+ \{.*\})$", block.text, re.M):
                assert told in printed, block.place
        elif block.language == "console":
            follow(block, shell)
        else:
            for line in block.text.splitlines():
                code, said = shell.run(line)
                assert code == 0, f"{block.place}: {line}: {said}"


def ask(block: Block) -> Iterator[list[tuple[str, ...]]]:
    with duckdb.connect() as db:
        for query in filter(None, map(str.strip, block.text.split(";"))):
            rows = db.sql(query).fetchall()
            assert rows, f"{block.place}: no rows: {query}"
            yield [tuple(map(str, row)) for row in rows]


def cells(box: str) -> list[tuple[str, ...]]:
    """The rows of a table as DuckDB draws it; the first two are names and types."""
    drawn = [line for line in box.splitlines() if line.startswith("│")]
    return [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in drawn][2:]


def is_shown(box: str, rows: list[tuple[str, ...]]) -> bool:
    told = cells(box)
    return len(told) == len(rows) and all(
        all(map(_alike, *pair)) for pair in zip(told, rows, strict=True)
    )


def _alike(told: str, found: str) -> bool:
    if "." in told and told.replace(".", "", 1).isdigit():
        return abs(float(told) - float(found)) < CLOSE
    return told == found


# -- what a session shows --------------------------------------------------------------------------

# Where it runs, and how quickly, differs from machine to machine.
_OF_THE_MACHINE = ("running on", "stages,", "rates ", "takes ")
_DIFFERS = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+00:00)?", "TIME"),
    (r"\d{8}T\d{6}Z-[0-9a-f]{6}", "RUN"),
    (r"\b[0-9a-f]{12}\b", "DIGEST"),
    (r"\b(fp32|bf16)\b", "PRECISION"),
    (r"\b\d[\d,]*\.\d+|\b\d{1,3}(,\d{3})+", "N"),
    (r"\s+", " "),
)


def as_told(line: str) -> str:
    """A line without what differs from night to night."""
    for pattern, name in _DIFFERS:
        line = re.sub(pattern, name, line)
    return line.strip()


def follow(block: Block, shell: Shell) -> None:
    """Type each command of a session, in turn, and look for each line that it shows."""
    for step in block.text.removeprefix("$ ").split("\n$ "):
        typed, *shown = step.splitlines()
        code, said = shell.run(typed)
        assert code in (0, 3), f"{block.place}: {typed}: {said}"
        if typed.startswith("duckdb"):
            assert is_shown(step, cells(said)), f"{block.place}: {typed}: {said}"
            continue
        lines = {as_told(line) for line in said.splitlines()}
        for line in shown:
            if not line.startswith(_OF_THE_MACHINE):
                assert as_told(line) in lines, f"{block.place}: {typed}: {said}"


def test_the_demo_table_is_the_one_made(library: Path) -> None:
    page = (DOCS / "start.md").read_text()
    table = library / "tables" / "labels.parquet"
    with duckdb.connect() as db:
        query = f"SELECT path, label, probability FROM '{table}' WHERE probability > 0.15"
        rows = db.sql(query).fetchall()
    assert len(rows) >= 3
    for path, label, probability in rows:
        shown = re.search(rf"│ {re.escape(path)} +│ {re.escape(label)} +│ +(0\.\d+) │", page)
        assert shown, path
        assert abs(float(shown[1]) - probability) < CLOSE
