"""The options of a run, shared by `run` and `plan`; each becomes a field of Settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.settings import (
    DEFAULT_IMAGE_TIMEOUT_S,
    DEFAULT_MAX_PIXELS,
    DEFAULT_TOP_K,
    PRECISIONS,
    RUNTIMES,
    Settings,
)

from .file_options import FILE_OPTIONS
from .param_types import PLACE, Auto, AutoInt, Budget, Duration, TableName, all_named, table_name

# Each command has it: click keeps the first answer to what a command's help option is called.
CONTEXT = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
PREPROCESS = click.Choice(
    ["vit", "squash", "deit", "torchvision", "swag"]
)  # vit.preprocess.PRESETS, without its imports
_PATH = click.Path(path_type=Path)

# For models that read text, whose --labels are words: also of the commands under `models`.
WORD_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--template",
        "templates",
        multiple=True,
        metavar="TEXT",
        help="The prompt of a word without prompts of its own, {} in its place; may be repeated: "
        "they are averaged. By default 'a photo of a {}'.",
    ),
    click.option(
        "--activation",
        type=click.Choice(["softmax", "sigmoid"]),  # vit.head.ACTIVATIONS, without its imports
        help="Whether one of your words is right, or each by itself may be. By default as the "
        "model was trained: softmax for CLIP, sigmoid for SigLIP.",
    ),
]

_OPTIONS: list[Callable[[Any], Any]] = [
    click.argument("paths", nargs=-1, metavar="PATH...", callback=all_named),
    click.option(
        "--files-from",
        metavar="FILE|-",
        help="Label the files of a list too: one a line, or as find -print0 writes them; - is "
        "standard input.",
    ),
    click.option(
        "-o",
        "--out",
        metavar="PATH",
        callback=table_name,
        help="The Parquet table to write or bring up to date; with a slash at the end a folder of "
        "files. Without it the labels are printed.",
    ),
    click.option(
        "--embeddings",
        metavar="DIR",
        type=PLACE,
        help="Keep the model's features of each labelled image, too: a folder of Parquet files with "
        "the table's keys, brought up to date with it.",
    ),
    click.option(
        "--report",
        metavar="DIR",
        type=PLACE,
        help="Then make pages of the table in this folder, as the command report does; open "
        "DIR/index.html.",
    ),
    click.option(
        "--model",
        metavar="auto|NAME",
        default="auto",
        show_default=True,
        type=Auto(),
        help="embedded, a folder, a checkpoint, hf-hub:OWNER/NAME[@REVISION] or "
        "torchvision:WEIGHTS. auto is the one that labelled the table at --out; where there is none "
        "the default model, from the Hugging Face Hub, and embedded where that cannot be reached.",
    ),
    click.option(
        "--labels",
        type=_PATH,
        help="Class names in class order, one a line, or JSON. For a model that reads text (CLIP, "
        "SigLIP): your own words, NAME or NAME: PROMPT | PROMPT.",
    ),
    *WORD_OPTIONS,
    click.option(
        "--arch",
        metavar="NAME",
        help="For a bare checkpoint: its architecture, by timm's name. By default found from it.",
    ),
    click.option(
        "--preprocess",
        type=PREPROCESS,
        help="For a bare checkpoint: how its photos were prepared. By default as its origin does.",
    ),
    click.option(
        "--top-k",
        metavar="N",
        type=click.IntRange(min=1),
        help=f"Classes kept an image. By default as the table at --out has; else {DEFAULT_TOP_K}.",
    ),
    click.option(
        "--batch-size",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=AutoInt(1),
        help="Images a model call.",
    ),
    click.option(
        "--workers",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=AutoInt(0),
        help="Decoding processes; 0 decodes in the main one.",
    ),
    click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N|mps",
        default="auto",
        show_default=True,
        type=Auto(),
        help="Where the model runs.",
    ),
    click.option(
        "--precision",
        metavar="auto|fp32|bf16|fp16",
        default="auto",
        show_default=True,
        type=Auto(*PRECISIONS),
        help="The model's numbers; probabilities are always computed in fp32.",
    ),
    click.option(
        "--runtime",
        metavar="auto|torch|openvino",
        default="auto",
        show_default=True,
        type=Auto(*RUNTIMES),
        help="What runs the model on a CPU. auto: OpenVINO, once its graph is made, which a long run "
        "or a nightly one repays.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="torch.compile the model (auto: on a GPU, from 50,000 images on).",
    ),
    *FILE_OPTIONS,
    click.option(
        "--max-errors",
        metavar="N|P%",
        default="5%",
        show_default=True,
        type=Budget(),
        help="More failures than this among the images labelled now, and the exit code is 3; the "
        "table is written all the same.",
    ),
    click.option(
        "--max-drift",
        metavar="DISTANCE",
        type=click.FloatRange(min=0, max=1),
        help="Warn where the new photos' class mix is further than this (Jensen-Shannon distance, 0 "
        "to 1) from that of those before.",
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
        type=Duration(),
        help="Leave files changed less than this long ago for the next run, unless everything is "
        "labelled again: they may still be written to. 90 (seconds), 30m, 2h, 1d.",
    ),
    click.option(
        "--max-runtime",
        metavar="DURATION",
        type=Duration(),
        help="Stop labelling after this long, with exit code 6; the same command goes on. 90 "
        "(seconds), 30m, 5h30m.",
    ),
    click.option(
        "--audit",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=AutoInt(0),
        help="Rows labelled again on the plainest path before the table appears; auto: 16, or 2% "
        "of few images.",
    ),
    click.option(
        "--shard-size",
        metavar="auto|N",
        default="auto",
        show_default=True,
        type=AutoInt(1),
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
        "--ray-address",
        metavar="HOST:PORT",
        help="A running Ray cluster; without it one is started on this machine.",
    ),
    click.option(
        "--restart", is_flag=True, help="Label everything again, whatever is done already."
    ),
    click.option(
        "--relabel",
        is_flag=True,
        help="Replace the labels of the whole table, where its model or this program is another "
        "than last time; naming another --model says so, too.",
    ),
    click.option(
        "--forget",
        metavar="FOLDER",
        multiple=True,
        callback=all_named,
        help="Drop the table's rows of a folder that is empty, gone or cannot be looked into; may "
        "be repeated.",
    ),
    click.option(
        "--overwrite", is_flag=True, help="Replace a file at --out that this tool did not write."
    ),
    click.option(
        "--metrics",
        metavar="FILE",
        type=_PATH,
        help="Write how the run ended, also where it fails, to this file for Prometheus.",
    ),
    click.option(
        "--quiet", is_flag=True, help="Say nothing where all is well: warnings and errors alone."
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of each error."),
    click.option(
        "--log-json",
        is_flag=True,
        help="Say everything as JSON, one object a line: results on stdout, all else on stderr.",
    ),
]


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the arguments and options of a run."""
    return _with(_OPTIONS, command)


def with_word_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options that go with words as --labels."""
    return _with(WORD_OPTIONS, command)


def _with(options: list[Callable[[Any], Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def settings_of(options: dict[str, Any]) -> Settings:
    """The settings that a command's options say."""
    table: TableName | None = options["out"]
    if table is None:
        return Settings(**options)
    return Settings(**{**options, "out": table.place, "is_dataset": table.is_folder})
