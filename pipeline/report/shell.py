"""The shell of each page: its frame, style and script, and how values are said on it.

Pages come from Jinja templates that escape all they are given. What a photo, its name or a label
says is text and nothing else: no page has a script of its own, and its Content-Security-Policy lets
none run but the one file beside it, and nothing be asked of any other host. A page works from a
disk, too, where `'self'` is not understood by every browser: therefore `file:`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import xxhash

from pipeline.path_names import printable

if TYPE_CHECKING:  # imported when there is a page to make
    import jinja2

POLICY = (
    "default-src 'none'; img-src 'self' file:; style-src 'self' file:; script-src 'self' file:; "
    "base-uri 'none'; form-action 'none'"
)
LONGEST = 300  # characters of a name on a page; of longer ones the middle is left out

_ASSETS = ("report.css", "report.js", "icon.svg")


@dataclass(frozen=True)
class Link:
    """`href` is from the report's folder, whatever page it stands on."""

    text: str
    href: str


@dataclass(frozen=True)
class Site:
    """What all pages of a report have in common: its name, the links at the top, and a line at the
    bottom.
    """

    name: str
    links: Sequence[Link]
    footer: str


def render(site: Site, template: str, path: str, title: str, values: Mapping[str, Any]) -> bytes:
    """Make the page that is to lie at `path` in the report's folder.

    The template gets `values`, and `up`: what leads from the page to that folder.
    """
    up = "../" * path.count("/")
    page = {"site": site, "path": path, "title": title, "up": up, "assets": _asset_names()}
    return _environment().get_template(template).render(**page, **values).encode()


def assets() -> dict[str, bytes]:
    """The files that pages need, by where they lie in the report's folder."""
    return {f"assets/{name}": data for name, data in _named_assets().values()}


@cache
def _named_assets() -> dict[str, tuple[str, bytes]]:
    """Named by what is in them: a page never meets another version's style or script."""
    named = {}
    for asset in _ASSETS:
        data = (files(__package__) / "assets" / asset).read_bytes()
        stem, suffix = asset.split(".")
        named[stem if suffix != "js" else "script"] = (
            f"{stem}-{xxhash.xxh3_64_hexdigest(data)}.{suffix}",
            data,
        )
    return named


def _asset_names() -> dict[str, str]:
    return {kind: f"assets/{name}" for kind, (name, _) in _named_assets().items()}


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": number, "pct": percent, "shown": shown, "width": width}
    environment.globals["policy"] = POLICY
    return environment


def number(value: float) -> str:
    return f"{value:,}"


def percent(share: float, digits: int = 0) -> str:
    """0.437 as 44%. What is not all is never said to be 100%, nor what is there to be 0%."""
    said = f"{share:.{digits}%}"
    least = 10**-digits
    if share > 0 and float(said[:-1]) == 0:
        return f"<{least:g}%"
    if share < 1 and float(said[:-1]) == 100:
        return f">{100 - least:g}%"
    return said


def width(share: float) -> str:
    """A share as the length of a bar; what is there is seen."""
    return f"{max(share * 100, 0.5 if share else 0):.4g}%"


def shown(text: str) -> str:
    """A name as people may see it: characters that steer text become escapes, and too long ones
    lose their middle.
    """
    text = printable(text)
    half = (LONGEST - 1) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"
