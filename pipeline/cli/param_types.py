"""What the options of the command take: places, ranges of them, numbers or auto, budgets and
durations.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UsageError
from pipeline.path_names import display
from pipeline.settings import ErrorBudget, parse_duration

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Place(click.ParamType):
    """Where a table is or is to be: a path, or the URI of a place in an object store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from jobs.errors import JobError
        from jobs.storage.object_store import at

        if isinstance(value, str) and not _is_utf8(value):
            self.fail(
                f"the name {display(value)} is not UTF-8, and Parquet tables are only written and "
                "read under names that are; choose another (or set LC_ALL=C.UTF-8, where this "
                "session takes names for another encoding)",
                param,
                ctx,
            )
        try:
            place = at(value) if isinstance(value, str) else value
        except JobError as error:
            self.fail(str(error), param, ctx)
        if isinstance(place, Path) and place.name in ("", ".."):
            # The folder one is in: what stands beside it is named after it.
            place = Path(os.path.abspath(place))
            if not place.name:
                self.fail(f"{place} is no name for a table", param, ctx)
        return place


PLACE = Place()


def _is_utf8(path: str) -> bool:
    """Whether pyarrow, which takes all names for UTF-8, means the same file as the operating system
    does.
    """
    try:
        return os.fsencode(path) == path.encode("utf-8")
    except UnicodeEncodeError:
        return False


def all_named(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[Any, ...]:
    """Each PATH as a place; photos-{000..127}.tar as WebDataset writes it, where no shell has done
    so.
    """
    from jobs.errors import JobError
    from jobs.storage.object_store import at

    try:
        return tuple(at(name) for value in values for name in expanded(value))
    except JobError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@dataclass(frozen=True)
class TableName:
    """What --out says: a place, and by a slash at its end that a table of many files is meant."""

    place: Any
    is_folder: bool


def table_name(ctx: click.Context, param: click.Parameter, value: str | None) -> TableName | None:
    if value is None:
        return None
    return TableName(PLACE.convert(value, param, ctx), value.endswith("/"))


def expanded(text: str) -> list[str]:
    match = _RANGE.search(text)
    if match is None or os.path.lexists(text):
        return [text]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [
        name
        for number in numbers
        for name in expanded(text[: match.start()] + number + text[match.end() :])
    ]


class AutoInt(click.ParamType):
    """A whole number of at least `least`, or auto (None)."""

    name = "auto|N"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        if isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < self.least:
            self.fail(
                f"{value!r} is neither auto nor a whole number from {self.least} up", param, ctx
            )
        return int(value)


class Auto(click.ParamType):
    """One of some words, or auto (None)."""

    name = "auto|..."

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | None:
        if value == "auto":
            return None
        if self.choices and value not in self.choices:
            self.fail(f"{value!r} is not one of auto, {', '.join(self.choices)}", param, ctx)
        return str(value)


class Budget(click.ParamType):
    name = "N|P%"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ErrorBudget:
        try:
            return value if isinstance(value, ErrorBudget) else ErrorBudget.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType):
    name = "DURATION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(str(error), param, ctx)
