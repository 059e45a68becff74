"""Where generated text stands in a page."""

import re
from collections.abc import Iterable

REGION = re.compile(
    r"^(<!-- generated: ([a-z-]+) -->\n)(.*?)^(<!-- end of generated -->)$", re.M | re.S
)


def cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
