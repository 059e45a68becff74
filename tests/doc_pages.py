"""The pages that readers see, and the blocks of code in them.

What a block is shows in its language. What a test has to know beside it stands in comments right
before the block, which no reader sees:

    <!-- not run: why not -->      the reason for which no test runs it
    <!-- before: ... -->           lines to be run first, to which the reader need not be told
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts))

RUN = frozenset({"sh", "console", "sql", "python"})
# Lines of cron and units of systemd have tests of their own (tests/test_monitoring.py).
SHOWN = frozenset({"text", "crontab", "ini"})

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"<!-- (not run|before): ?((?:(?!-->).)*?) ?-->\n\Z", re.S)


@dataclass(frozen=True)
class Block:
    """A block of code, and the comments before it."""

    page: Path
    line: int
    language: str
    text: str
    comments: dict[str, str] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        return self.language in RUN and "not run" not in self.comments

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in turn; directives of Sphinx (`{toctree}`) are none."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        language, code = found.groups()
        if language.startswith("{"):
            continue
        comments = {}
        before = text[: found.start()]
        while comment := _COMMENT.search(before):
            comments[comment[1]] = comment[2].strip()
            before = before[: comment.start()]
        yield Block(page, text.count("\n", 0, found.start()) + 1, language, code, comments)
