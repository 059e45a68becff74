"""What the README says can be typed: its queries run, its commands parse."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest
from PIL import Image

from pipeline.cli.commands import main
from pipeline.console import Console
from pipeline.run import run
from pipeline.settings import Settings
from tests.helpers import ROOT, Command
from tests.text_models import model_folder
from vit.train import main as train

README = (ROOT / "README.md").read_text()
WORDS = "word_vectors("  # in the code that needs a model that reads text


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture(scope="module")
def example_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("readme")
    paths = (ROOT / "examples" / "photos",)
    (folder / "photos").symlink_to(paths[0])
    out, embeddings = folder / "labels.parquet", folder / "embeddings"
    run(Settings(paths=paths, out=out, embeddings=embeddings, workers=0), Console())
    return folder


@pytest.fixture(scope="module")
def table_with_a_failure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same photos, a broken one, a copy and a smaller one: what counts those has something to
    count.
    """
    folder = tmp_path_factory.mktemp("failure")
    (folder / "broken.jpg").write_bytes(b"no photo")
    coffee = ROOT / "examples" / "photos" / "coffee.jpg"
    shutil.copy(coffee, folder / "copy.jpg")
    with Image.open(coffee) as image:
        image.reduce(2).save(folder / "coffee-small.jpg")
    names = ("broken.jpg", "copy.jpg", "coffee-small.jpg")
    paths = (ROOT / "examples" / "photos", *(folder / name for name in names))
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
    if "AS similarity" in query:
        assert [path for path, _ in rows[:2]] == ["copy.jpg", "coffee-small.jpg"]
        assert rows[0] == ("copy.jpg", 1.0)
    if "near_duplicate" in query:
        [(*pair, cosine)] = rows  # not the copy, which is the same content
        assert pair == ["coffee-small.jpg", "coffee.jpg"]
        shown = re.search(r"│ coffee-small.jpg │ coffee.jpg     │ +(0\.\d+) │", README)
        assert shown
        assert abs(float(shown[1]) - cosine) < 0.01


@pytest.mark.parametrize("code", [code for code in blocks("python") if WORDS not in code])
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


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("clip") / "clip", "clip")


@pytest.mark.parametrize("code", [code for code in blocks("python") if WORDS in code])
def test_the_python_with_words_runs(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("cat\ndog\n")
    settings = Settings(
        paths=(ROOT / "examples" / "photos",), out=tmp_path / "labels.parquet", model=str(clip),
        labels=words, embeddings=tmp_path / "embeddings", workers=0,
    )  # fmt: skip
    run(settings, Console())
    exec(compile(code, "README", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    cosines = [float(cosine) for _, cosine in printed]
    assert len(cosines) == 3
    assert cosines == sorted(cosines, reverse=True)
    photos = {path.name for path in (ROOT / "examples" / "photos").rglob("*.*")}
    assert {Path(path).name for path, _ in printed} <= photos


def as_told(line: str) -> str:
    """A line without its numbers and digests, which differ from night to night."""
    return re.sub(r"\b[0-9a-f]{12}\b|\d[\d,.]*", "N", line)


def test_what_words_do_is_what_the_readme_shows(
    clip: Path, command: Command, tmp_path: Path
) -> None:
    """Each command of that block, in turn, and each line that it shows."""
    where = tmp_path / "cwd"
    where.mkdir()
    shutil.copytree(clip, where / "clip")
    photos = ROOT / "examples" / "photos"
    shutil.copytree(photos, where / "photos", ignore=shutil.ignore_patterns("*.md"))
    (block,) = re.findall(r"^```\n(\$ cat words\.txt\n.*?)^```", README, re.M | re.S)
    ran = []
    for step in block.removeprefix("$ ").split("\n$ "):
        typed, *shown = step.splitlines()
        program, *words = shlex.split(typed.split(" | ")[0])
        ran.append(program)
        if program == "cat":
            (where / words[0]).write_text("\n".join(shown) + "\n")
        elif program == "sed":
            subprocess.run([program, *words], cwd=where, check=True)
        elif program == "duckdb":
            with duckdb.connect() as db:
                query = words[1].replace("'labels.parquet'", f"'{where / 'labels.parquet'}'")
                paths = [path for path, *_ in db.sql(query).fetchall()]
            assert paths == [line.split()[1] for line in shown[4:-1]]
        else:
            said = command(*words)
            assert said.returncode == 0, said.stderr
            lines = {as_told(line) for line in (said.stdout + said.stderr).splitlines()}
            # Where it runs, and how quickly, differs from machine to machine.
            told = {as_told(line) for line in shown if not line.startswith(("running", "stages"))}
            assert told <= lines
    assert (ran.count("label-images"), ran.count("duckdb"), ran.count("sed")) == (4, 2, 1)


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
