"""How Sphinx builds these pages: `make docs`. They ask nothing of any other host."""

import re
from pathlib import Path
from typing import Any

project = "label-images"
author = "the label-images authors"
html_title = "label-images"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
# As GitHub names them, so that a link to a heading works there and here.
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
# Options are written with two hyphens, and are not dashes.
smartquotes = False

html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
highlight_language = "text"
# crontab is no language that Pygments knows, and needs no colours.
suppress_warnings = ["misc.highlighting_failure"]

# A link to Markdown outside this folder. Readers of the files follow it as it stands; in the pages it
# is a file to open, as links to code are.
_OUTSIDE = re.compile(r"\]\((?=((?:\.\./)+[^)#:]*\.md)\))")


def _open_files_outside(app: Any, docname: str, source: list[str]) -> None:
    folder = (Path(app.srcdir) / docname).parent

    def target(match: re.Match[str]) -> str:
        is_page = (folder / match[1]).resolve().is_relative_to(app.srcdir)
        return "](" if is_page else "](path:"

    source[0] = _OUTSIDE.sub(target, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _open_files_outside)
