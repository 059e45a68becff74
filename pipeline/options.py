"""The options of a run, shared by `run` and `plan`; each becomes a field of Settings."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .errors import UsageError
from .settings import DEFAULT_IMAGE_TIMEOUT_S, DEFAULT_MAX_PIXELS, ErrorBudget, parse_duration

PREPROCESS = click.Choice(["vit", "squash", "deit", "torchvision"])  # vit.preprocess.PRESETS, without its imports
_PATH = click.Path(path_type=Path)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class _Place(click.ParamType):
    """A path, or the URI of a place in an object store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from jobs.errors import JobError
        from jobs.store import at

        try:
            return at(value) if isinstance(value, str) else value
        except JobError as error:
            self.fail(str(error), param, ctx)


PLACE = _Place()


def _all_named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    """Each PATH as a place; photos-{000..127}.tar as WebDataset writes it, where no shell has done so."""
    return tuple(PLACE.convert(name, param, ctx) for value in values for name in _expanded(value))


def _out(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """The place of the table; a folder of files where it ends in a slash, or is one already."""
    place = None if value is None else PLACE.convert(value, param, ctx)
    ctx.params["is_dataset"] = value is not None and (value.endswith("/") or _is_table_of_many(place))
    return place


def _is_table_of_many(place: Any) -> bool:
    from jobs.job import Job

    return bool(place.is_dir() and Job(place).index_path.is_file())


def _expanded(text: str) -> list[str]:
    match = _RANGE.search(text)
    if match is None or os.path.lexists(text):
        return [text]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [name for number in numbers for name in _expanded(text[: match.start()] + number + text[match.end() :])]


class _AutoInt(click.ParamType):
    """A whole number of at least `least`, or auto (None)."""

    name = "auto|N"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < self.least:
            self.fail(f"{value!r} is neither auto nor a whole number from {self.least} up", param, ctx)
        return int(value)


class _Auto(click.ParamType):
    """One of some words, or auto (None)."""

    name = "auto|..."

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
        if value == "auto":
            return None
        if self.choices and value not in self.choices:
            self.fail(f"{value!r} is not one of auto, {', '.join(self.choices)}", param, ctx)
        return str(value)


class _Budget(click.ParamType):
    name = "N|P%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ErrorBudget:
        try:
            return value if isinstance(value, ErrorBudget) else ErrorBudget.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class _Duration(click.ParamType):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(str(error), param, ctx)


_OPTIONS: list[Callable[[Any], Any]] = [
    click.argument("paths", nargs=-1, callback=_all_named),
    click.option(
        "--files-from",
        metavar="FILE|-",
        help="Label the files of a list too: one a line, or as find -print0 writes them; - is standard input.",
    ),
    click.option(
        "--out",
        metavar="PATH",
        callback=_out,
        help="The Parquet table to write or bring up to date; a folder of many files where it ends in a slash. "
        "Without it the labels are printed.",
    ),
    click.option(
        "--model",
        default="embedded",
        show_default=True,
        help="embedded, a folder, a checkpoint, hf-hub:OWNER/NAME[@REVISION] or torchvision:WEIGHTS.",
    ),
    click.option("--labels", type=_PATH, help="Class names in class order, one a line, or JSON."),
    click.option(
        "--arch",
        metavar="NAME",
        help="For a bare checkpoint: its architecture, as timm names it (vit_base_patch16_384). Found from the "
        "weights if left out.",
    ),
    click.option(
        "--preprocess",
        type=PREPROCESS,
        help="For a bare checkpoint: how its photos were prepared. By default as its origin does.",
    ),
    click.option(
        "--top-k",
        metavar="N",
        default=5,
        show_default=True,
        type=click.IntRange(min=1),
        help="Classes kept an image.",
    ),
    click.option(
        "--batch-size",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=_AutoInt(1),
        help="Images a model call.",
    ),
    click.option(
        "--workers",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=_AutoInt(0),
        help="Decoding processes; 0 decodes in the main one.",
    ),
    click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N|mps",
        default="auto",
        show_default=True,
        type=_Auto(),
        help="Where the model runs.",
    ),
    click.option(
        "--precision",
        metavar="auto|fp32|bf16|fp16",
        default="auto",
        show_default=True,
        type=_Auto("fp32", "bf16", "fp16"),
        help="The model's numbers; probabilities are always computed in fp32.",
    ),
    click.option(
        "--compile/--no-compile", default=None, help="torch.compile the model (auto: on a GPU, in long runs)."
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Take these names instead of the usual image extensions; may be repeated.",
    ),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these names or folders out; may be repeated."),
    click.option(
        "--image-column",
        metavar="NAME",
        help="Take Parquet tables too: the images in this column, as bytes.",
    ),
    click.option(
        "--key-column",
        metavar="NAME",
        help="With --image-column: what an image of a table is called; by default its row's number.",
    ),
    click.option(
        "--max-errors",
        metavar="N|P%",
        default="5%",
        show_default=True,
        type=_Budget(),
        help="More failed images than this, and the exit code is 3; the table is written all the same.",
    ),
    click.option(
        "--max-pixels",
        metavar="N",
        default=DEFAULT_MAX_PIXELS,
        show_default=True,
        type=click.IntRange(min=1),
        help="Larger images fail with too_many_pixels, before they are decoded.",
    ),
    click.option(
        "--image-timeout",
        metavar="SECONDS",
        default=DEFAULT_IMAGE_TIMEOUT_S,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        help="An image that takes longer to read and decode fails with timeout.",
    ),
    click.option(
        "--settle",
        metavar="DURATION",
        default="0",
        show_default=True,
        type=_Duration(),
        help="Leave files changed less than this long ago for the next run: they may still be written to. "
        "90 (seconds), 30m, 2h.",
    ),
    click.option(
        "--max-runtime",
        metavar="DURATION",
        type=_Duration(),
        help="Stop labelling after this long, with exit code 6; the same command goes on. 90 (seconds), 30m, 5h30m.",
    ),
    click.option(
        "--audit",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=_AutoInt(0),
        help="Rows labelled again on the plainest path before the table appears; auto: 16, or 2% of few images.",
    ),
    click.option(
        "--shard-size",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=_AutoInt(1),
        help="Images a shard: what a crash can cost.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray spreads the work over the nodes of a Ray cluster, or the GPUs of this machine.",
    ),
    click.option(
        "--ray-address", metavar="HOST:PORT", help="A running Ray cluster; without it one is started on this machine."
    ),
    click.option("--restart", is_flag=True, help="Label everything again, whatever is done already."),
    click.option("--overwrite", is_flag=True, help="Replace a file at --out that this tool did not write."),
    click.option("--quiet", is_flag=True, help="Say nothing but warnings, errors and the last line."),
    click.option("--log-json", is_flag=True, help="Say everything as JSON, one object a line."),
]


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the arguments and options of a run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
