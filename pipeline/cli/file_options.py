"""The options of a run that say which files are images to label (pipeline.find.selection)."""

from collections.abc import Callable
from typing import Any

import click

FILE_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Take these names, in any case, instead of the usual image extensions; may be "
        "repeated.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave these names or folders out, in the case given; may be repeated.",
    ),
    click.option(
        "--no-default-excludes",
        "default_excludes",
        flag_value=False,
        default=True,
        help="Take what is left out by default, too: hidden names, with a leading dot, and clutter of "
        "storage boxes, systems and photo programs such as @eaDir and *.lrdata.",
    ),
    click.option(
        "--pairs",
        type=click.Choice(["all", "first"]),  # pipeline.find.pairs.PAIRS, without its imports
        default="all",
        show_default=True,
        help="Of a raw photo and other images of the same name in a folder take all, or the first: "
        "JPEG, else HEIC, else other images, else DNG, else the camera's own.",
    ),
    click.option(
        "--image-column",
        metavar="NAME",
        help="Take Parquet tables too: the images in this column, as bytes.",
    ),
    click.option(
        "--key-column",
        metavar="NAME",
        help="With --image-column: what an image of a table is called; by default its row's "
        "number.",
    ),
]
