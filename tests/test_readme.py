"""What the README says can be typed: its queries run, its commands parse."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest

from pipeline.cli.commands import main
from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from tests.helpers import ROOT
from vit.train import main as train

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def example_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("readme")
    paths = (ROOT / "examples" / "photos",)
    (folder / "photos").symlink_to(paths[0])
    run(Settings(paths=paths, out=folder / "labels.parquet", workers=0), Console())
    return folder


@pytest.fixture(scope="module")
def table_with_a_failure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same photos, a broken one and a copy: what counts those has something to count."""
    folder = tmp_path_factory.mktemp("failure")
    (folder / "broken.jpg").write_bytes(b"no photo")
    shutil.copy(ROOT / "examples" / "photos" / "coffee.jpg", folder / "copy.jpg")
    paths = (ROOT / "examples" / "photos", folder / "broken.jpg", folder / "copy.jpg")
    out, embeddings = folder / "labels.parquet", folder / "embeddings"
    run(Settings(paths=paths, out=out, embeddings=embeddings, workers=0), Console())
    return folder


@pytest.mark.parametrize(
    "query",
    [
        query
        for block in blocks("sql")
        for query in block.split(";")
        if query.strip() and "thresholds.json" not in query  # tests/test_thresholds.py
    ],
)
def test_the_queries_run(
    table_with_a_failure: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.chdir(table_with_a_failure)
    with duckdb.connect() as db:
        rows = db.sql(query).fetchall()
    assert rows
    if "error_code" in query:
        assert rows == [("not_an_image", 1)]
    if "copies" in query:
        assert [copies for _, copies in rows] == [["coffee.jpg", "copy.jpg"]]
    if "similarity" in query:
        assert rows[0] == ("copy.jpg", 1.0)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(
    example_table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
) -> None:
    monkeypatch.chdir(example_table)
    exec(compile(code, "README", "exec"), {})
    printed = capsys.readouterr().out
    expected = re.search(r"# (7 \{.*\})$", code, re.M)
    assert printed.strip() == expected[1] if expected else "coffee.jpg" in printed


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line.split("|")[-1].split(" > ")[0], comments=True)
            if words[:3] == ["python", "-m", "vit.train"]:
                continue  # test_the_training_commands_parse
            assert words[0] == "label-images", line
            yield words[1:]


TRAINING = (ROOT / "vit" / "embedded" / "README.md").read_text() + README


@pytest.mark.parametrize(
    "line", re.findall(r"python -m vit\.train (?!DATA)((?:.*\\\n)*.* --.*)", TRAINING)
)
def test_the_training_commands_parse(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line.replace("\\\n", " "))
    monkeypatch.chdir(tmp_path)
    for word in words:  # the files they name are there for whoever types them
        if "/" in word or word.endswith((".parquet", ".json")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    train.make_context("train", words)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_the_commands_parse(words: list[str]) -> None:
    context = click.Context(main, info_name="label-images")
    group: click.Group = main
    name, command, rest = group.resolve_command(context, words)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, rest)
    assert command is not None
    command.make_context(name, rest, parent=context)


def test_the_demo_table_in_the_readme_is_the_one_made(example_table: Path) -> None:
    with duckdb.connect() as db:
        table = example_table / "labels.parquet"
        rows = db.sql(
            f"SELECT path, label, probability FROM '{table}' WHERE probability > 0.15"
        ).fetchall()
    for path, label, probability in rows:
        shown = re.search(rf"│ {re.escape(path)} +│ {re.escape(label)} +│ +(0\.\d+) │", README)
        assert shown, path
        assert abs(float(shown[1]) - probability) < 0.02
