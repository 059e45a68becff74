"""Bring the generated parts of the pages up to date: `python -m docs.generate`, which `make docs` does.

A part stands between two comments, which no reader sees:

    <!-- generated: columns -->
    <!-- end of generated -->

Pages are read on disk and on GitHub, too, so the parts are in the files and not made while Sphinx
builds. With --check nothing is written, and the exit code is 1 where a page is not up to date
(tests/test_docs.py).
"""

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate import columns, command, coverage, library
from docs.generate.regions import REGION

DOCS = Path(__file__).parent.parent
PARTS: dict[str, Callable[[], str]] = {
    "columns": columns.columns,
    "embeddings": columns.embedding_columns,
    "error-codes": columns.error_codes,
    "commands": command.commands,
    "coverage": coverage.coverage,
    "library": library.library,
}


def renewed(page: str) -> str:
    """The text of a page with its generated parts as they should be."""
    return REGION.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[4]}", page)


def main(arguments: list[str]) -> int:
    stale = []
    for path in sorted(DOCS.rglob("*.md")):
        if "_build" in path.parts:
            continue
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            stale.append(path)
            if "--check" not in arguments:
                path.write_text(after, encoding="utf-8")
    for path in stale:
        sys.stderr.write(f"{path.relative_to(DOCS.parent)} was not up to date\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
