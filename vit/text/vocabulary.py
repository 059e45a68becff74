"""The user's own words: a file of names, and the prompts that say each to a text tower.

    cat                                                    its prompts come from the templates
    invoice: a photo of an invoice | a scanned bill        it brings its own

or JSON, `{"invoice": ["a photo of an invoice", "a scanned bill"], "cat": []}`. The order of the
names is the order of the classes. Which words a model can read is the tower's to say (words.py).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.errors import ModelError, no_permission

# For names that bring no prompts, where the user gives no template. It is worth 1.3 points on
# ImageNet over the name alone (Radford et al. 2021, section 3.1.4).
DEFAULT_TEMPLATE = "a photo of a {}"

# A name ends where a colon has a space after it: "12:30" is a name, and so is "cat:dog".
_NAME_AND_PROMPTS = re.compile(r"(.*?):(?:\s+(.*))?$")


@dataclass(frozen=True)
class Vocabulary:
    """`prompts` are as many as `names`, in the same order, and none of them is empty."""

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    used_default: bool  # DEFAULT_TEMPLATE made some of them


def read_vocabulary(path: Path, templates: tuple[str, ...] = ()) -> Vocabulary:
    """Read a file of words; names without prompts of their own get one of each template.

    Raises ModelError.
    """
    _check_templates(templates)
    entries = _read_json(path) if path.suffix == ".json" else _read_lines(path)
    if not entries:
        raise ModelError(f"{path} holds no words; write one a line")
    first: dict[str, str] = {}
    for place, name, _ in entries:
        if name in first:
            raise ModelError(
                f"{path} has {name!r} twice, at {first[name]} and {place}; give one name all its "
                f"prompts: {name}: one prompt | another"
            )
        first[name] = place
    prompts = tuple(own or _prompts(name, templates) for _, name, own in entries)
    made_some = not templates and any(not own for _, _, own in entries)
    return Vocabulary(tuple(name for _, name, _ in entries), prompts, made_some)


def vocabulary_of(words: Sequence[str], templates: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary of words that a program says, with one prompt of each template.

    Raises ModelError.
    """
    if isinstance(words, str) or isinstance(templates, str):
        raise ModelError("words and templates are lists of texts, also where there is only one")
    _check_templates(templates)
    names = tuple(word.strip() for word in words)
    if not names or not all(names):
        raise ModelError("there are no words, or one of them is empty; say what to look for")
    prompts = tuple(_prompts(name, templates) for name in names)
    return Vocabulary(names, prompts, used_default=not templates)


def _prompts(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """A name's prompts where it brings none of its own."""
    return tuple(template.replace("{}", name) for template in templates or (DEFAULT_TEMPLATE,))


def _check_templates(templates: Sequence[str]) -> None:
    for template in templates:
        if "{}" not in template:
            raise ModelError(
                f"--template {template!r} has no {{}}, so every word would get the same prompt; "
                "write {} where the word is to stand, as in 'a photo of a {}'"
            )


_Entry = tuple[str, str, tuple[str, ...]]  # where it stands, name, prompts of its own


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except PermissionError as error:
        raise no_permission(path) from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the words in {path} are not UTF-8 (byte {error.start}); save the file as UTF-8: "
            f"iconv -f latin1 -t utf-8 {path}"
        ) from error
    except OSError as error:
        raise ModelError(f"the words in {path} cannot be read: {error}") from error


def _read_lines(path: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        place, line = f"line {number}", line.strip()
        if not line:
            continue
        match = _NAME_AND_PROMPTS.fullmatch(line)
        if match is None:
            entries.append((place, line, ()))
            continue
        name, prompts = match[1].strip(), (match[2] or "").split("|")
        entries.append((place, _checked_name(path, place, name), _checked(path, place, prompts)))
    return entries


def _read_json(path: Path) -> list[_Entry]:
    shape = 'a JSON object of lists, such as {"invoice": ["a photo of an invoice"], "cat": []}'
    try:
        # As pairs: of a name that stands there twice a dict would keep one, and say nothing.
        loaded = json.loads(_read_text(path), object_pairs_hook=_Pairs)
    except ValueError as error:
        raise ModelError(f"{path} is not {shape} ({error})") from error
    if isinstance(loaded, _Pairs):
        pairs: Iterable[tuple[Any, Any]] = loaded
    elif isinstance(loaded, list):
        pairs = [(name, []) for name in loaded]
    else:
        raise ModelError(f"{path} is not {shape}, nor a list of names")
    entries: list[_Entry] = []
    for number, (name, prompts) in enumerate(pairs, 1):
        place = f"entry {number}"
        if not isinstance(name, str):
            raise ModelError(f"{path}, {place}: {name!r} is no name; the file is to be {shape}")
        if type(prompts) is not list or not all(isinstance(prompt, str) for prompt in prompts):
            raise ModelError(
                f"{path}, {place}: the prompts of {name!r} are not a list of texts; the file is to "
                f"be {shape}"
            )
        name = _checked_name(path, place, name.strip())
        entries.append((place, name, _checked(path, place, prompts)))
    return entries


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all that stands in it, also twice."""


def _checked_name(path: Path, place: str, name: str) -> str:
    if not name:
        raise ModelError(f"{path}, {place}: there is no name before the prompts")
    return name


def _checked(path: Path, place: str, prompts: list[str]) -> tuple[str, ...]:
    stripped = tuple(prompt.strip() for prompt in prompts)
    if not all(stripped):
        raise ModelError(
            f"{path}, {place}: a prompt is empty; write NAME: one prompt | another, or the name "
            "alone"
        )
    return stripped
