"""README and docs as texts: short enough, up to date with the code, and every link leads somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.generate.__main__ import main as generate
from docs.generate.regions import REGION
from pipeline.cli.commands import main
from tests.doc_pages import DOCS, PAGES, README, RUN, SHOWN, Block, blocks, name_of
from tests.helpers import ROOT
from vit.train import main as train

ALSO = (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md")
LINKED = [page for page in (*PAGES, *ALSO) if page.exists()]
BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_the_generated_parts_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(["--check"]) == 0, capsys.readouterr().err + "run python -m docs.generate"


def test_readme_is_read_in_minutes() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 130
    assert len(text.split()) < 1_200


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_no_page_is_long(page: Path) -> None:
    """But what is generated, which is looked up and not read."""
    text = REGION.sub("", page.read_text())
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    assert len(text.split()) <= 1_500


# -- links ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What headings are called in an address, as GitHub and MyST make it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#{1,4} (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    yield from re.findall(r"\]\(<?([^)>]+)>?\)", text)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_messages_and_comments_name_pages_that_are_there() -> None:
    for package in ("pipeline", "jobs", "vit", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for named in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
                assert (ROOT / named).exists(), f"{path.name} names {named}"


# -- blocks of code ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_what_a_block_is_can_be_seen(block: Block) -> None:
    assert block.language in RUN | SHOWN
    assert block.comments.get("not run", "why not"), "a block that is not run says why"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of label-images in the pages, also of those blocks that no test runs."""
    for block in BLOCKS:
        for line in block.text.splitlines():
            typed = line.removeprefix("$ ") if block.language == "console" else line
            if block.language == "console" and typed == line:
                continue  # what it prints
            if block.language == "crontab":
                typed = typed.split(maxsplit=5)[5]
            if block.language in ("sh", "console", "crontab"):
                for words in _label_images(typed):
                    yield f"{block.place} {' '.join(words)}", words


def _label_images(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|>;"):
            words.append(word)
            continue
        if words and Path(words[0]).name == "label-images":
            yield words[1:]
        words = []


COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_parse(words: list[str]) -> None:
    if words in (["--help"], ["--version"]):
        return
    context = click.Context(main, info_name="label-images", **main.context_settings)
    group: click.Group = main
    name, command, rest = group.resolve_command(context, words)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, rest)
    assert command is not None
    command.make_context(name, rest, parent=context)


TRAINING = "".join(
    page.read_text() for page in (ROOT / "vit" / "embedded" / "README.md", DOCS / "training.md")
)


@pytest.mark.parametrize(
    "line", re.findall(r"python -m vit\.train (?!DATA)((?:.*\\\n)*.* --.*)", TRAINING)
)
def test_the_training_commands_parse(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line.replace("\\\n", " "))
    monkeypatch.chdir(tmp_path)
    for word in words:  # the files they name are there for whoever types them
        if "/" in word or word.endswith((".parquet", ".json", ".checkpoint")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    train.make_context("train", words)
