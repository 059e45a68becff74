"""Where generated text stands in a page."""

import re
from collections.abc import Iterable

REGION = re.compile(
    r"^(<!-- generated: ([a-z-]+) -->\n)(.*?)^(<!-- end of generated -->)$", re.M | re.S
)


_AS_CODE = re.compile(
    r"(?<![\w`/'])(--?[a-z][a-z0-9-]+|hf-hub:\S+?(?=[ ,.]|$)|torchvision:[A-Z]+|\./\w+|\w+\.[a-z]+/\w+"
    r"|DIR/index\.html|pip install '[^']+')"
)


def prose(text: str) -> str:
    """A help text with what is typed set as code: options, addresses and commands."""
    return _AS_CODE.sub(r"`\1`", text)


def cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
