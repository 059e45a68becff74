"""The commands under `label-images models`."""

from pathlib import Path

import click

from pipeline.path_names import printable

from .exit_codes import at_work
from .options import CONTEXT, PREPROCESS


@click.group(context_settings=CONTEXT, short_help="List, show and convert models.")
def models() -> None:
    """List, show and convert models."""


@models.command("list", context_settings=CONTEXT, short_help="What can be loaded.")
def list_models() -> None:
    """List the forms of --model, and the architectures by name.

    \b
        label-images models list
    """
    with at_work():
        from .model_texts import list_lines

        for line in list_lines():
            click.echo(line)


@models.command("show", context_settings=CONTEXT, short_help="Layers, shapes and parameters.")
@click.argument("model")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Class names, where the model has none."
)
@click.option("--arch", metavar="NAME", help="For a bare checkpoint: its architecture.")
@click.option("--classes", is_flag=True, help="List the class names instead.")
def show_model(model: str, labels: Path | None, arch: str | None, classes: bool) -> None:
    """Show a model layer by layer, with output shapes and parameter counts.

    MODEL is anything --model takes, or an architecture's name.

    \b
        label-images models show embedded
        label-images models show vit_base_patch16_384
    """
    with at_work():
        from .model_texts import class_lines, show_lines

        for line in (
            class_lines(model, labels, arch) if classes else show_lines(model, labels, arch)
        ):
            click.echo(line if classes else printable(line))


@models.command(
    "convert", context_settings=CONTEXT, short_help="A bare checkpoint becomes a bundle."
)
@click.argument("checkpoint")
@click.option("--arch", metavar="NAME", help="Its architecture, as timm names it; another image size resamples the "
              "position embedding. Found from the weights if left out.")  # fmt: skip
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names in class order, one a line, or JSON.",
)
@click.option("--preprocess", type=PREPROCESS, help="How its photos were "
              "prepared. By default as its origin does.")  # fmt: skip
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder, or a file ending in .safetensors.",
)
def convert_model(
    checkpoint: str, arch: str | None, labels: Path | None, preprocess: str | None, out: Path
) -> None:
    """Write CHECKPOINT as a bundle: weights, architecture, preprocessing and class names in one.

    \b
        label-images models convert vit.pth --arch vit_base_patch16_384 --labels classes.txt --out
        my-vit
    """
    with at_work():
        from .model_texts import convert

        click.echo(convert(checkpoint, arch, labels, preprocess, out))
