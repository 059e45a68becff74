"""The library, from its docstrings and signatures."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from docs.generate.regions import cell, table
from pipeline.cli.commands import main
from pipeline.library import Outcome, Settings, Table, label_images, word_vectors

_OPTIONS = {each.name: each.opts[-1] for each in main.commands["run"].params}


def library() -> str:
    return "\n".join(
        [
            *_function(label_images),
            *_settings(),
            *_class(Outcome, (*_fields(Outcome), *_properties(Outcome))),
            *_class(Table, _properties(Table)),
            *_function(word_vectors),
        ]
    )


def _function(function: Any, prefix: str = "##") -> Iterator[str]:
    yield f"{prefix} {function.__name__}\n"
    yield f"```text\n{_signature(function)}\n```\n"
    yield _doc(function)


def _signature(function: Any) -> str:
    signature = str(inspect.signature(function)).replace("self, ", "").replace("(self)", "()")
    return function.__name__ + _short(signature)


def _doc(thing: Any) -> str:
    return f"{inspect.getdoc(thing) or ''}\n"


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield _doc(Settings)
    blank = Settings()
    rows = [
        (
            f"`{field.name}`",
            f"`{cell(_type(field.type))}`",
            f"`{getattr(blank, field.name)}`",
            _as(_OPTIONS.get(field.name)),
        )
        for field in dataclasses.fields(Settings)
    ]
    yield table(("field", "type", "default", "as"), rows)


def _as(option: str | None) -> str:
    if option is None:
        return ""
    return f"`{option}`" if option.startswith("-") else "PATH..."


def _type(annotation: Any) -> str:
    return _short(
        annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    )


def _short(annotation: str) -> str:
    """Types by their own names, without those of their modules."""
    return re.sub(r"['\"]|\b(?:\w+\.)+(?=[A-Z])", "", annotation)


def _class(of: Any, rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield f"## {of.__name__}\n"
    yield _doc(of)
    yield table(("", "type", ""), rows)
    for name, method in vars(of).items():
        if inspect.isfunction(method) and name in ("dataset", "scan", "exit_code", "last_line"):
            yield from _function(method, "###")


def _fields(of: Any) -> Iterator[tuple[str, str, str]]:
    for field in dataclasses.fields(of):
        yield f"`{field.name}`", f"`{cell(_type(field.type))}`", ""


def _properties(of: Any) -> Iterator[tuple[str, str, str]]:
    for name, member in vars(of).items():
        if isinstance(member, property):
            returns = inspect.signature(member.fget).return_annotation  # type: ignore[arg-type]
            yield f"`{name}`", f"`{cell(_type(returns))}`", cell(inspect.getdoc(member) or "")
