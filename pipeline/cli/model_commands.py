"""The commands under `label-images models`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.path_names import printable

from .exit_codes import at_work
from .options import CONTEXT, PREPROCESS, with_word_options

if TYPE_CHECKING:  # torch's import would keep --help waiting
    from vit.head import Activation


@click.group(context_settings=CONTEXT, short_help="List, show, fetch, fit and convert models.")
def models() -> None:
    """List, show, fetch, fit and convert models."""


@models.command("list", context_settings=CONTEXT, short_help="What can be loaded.")
@click.option(
    "--all", "everything", is_flag=True, help="Published models by name: cost, size and accuracy."
)
@click.option(
    "--sort",
    type=click.Choice(["gmacs", "accuracy", "size"]),
    help="For --all: the order; by default gmacs, the cheapest first.",
)
def list_models(everything: bool, sort: str | None) -> None:
    """List the forms of --model, and the architectures by name; or all published models.

    \b
        label-images models list
        label-images models list --all --sort accuracy
    """
    if sort and not everything:
        raise click.UsageError("--sort is for --all: label-images models list --all --sort ...")
    with at_work():
        if everything:
            from .model_table import table_lines

            lines = table_lines(sort or "gmacs")
        else:
            from .model_texts import list_lines

            lines = list_lines()
        for line in lines:
            click.echo(line)


@models.command("show", context_settings=CONTEXT, short_help="Layers, shapes and parameters.")
@click.argument("model")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names, where the model has none; or your own words, where it reads text.",
)
@with_word_options
@click.option("--arch", metavar="NAME", help="For a bare checkpoint: its architecture.")
@click.option("--classes", is_flag=True, help="List the class names instead.")
def show_model(
    model: str,
    labels: Path | None,
    templates: tuple[str, ...],
    activation: "Activation | None",
    arch: str | None,
    classes: bool,
) -> None:
    """Show a model layer by layer, with output shapes and parameter counts.

    MODEL is anything --model takes; or, with nothing downloaded, an architecture's name or a
    published model's.

    \b
        label-images models show embedded
        label-images models show vit_base_patch16_384
        label-images models show vit_base_patch16_384.augreg_in21k_ft_in1k
    """
    with at_work():
        from .model_texts import Asked, class_lines, show_lines

        asked = Asked(model, labels, arch, None, templates, activation)
        for line in class_lines(asked) if classes else show_lines(asked):
            click.echo(line if classes else printable(line))


@models.command(
    "fetch", context_settings=CONTEXT, short_help="Download for a machine that will be offline."
)
@click.argument("names", metavar="[MODEL...]", nargs=-1)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names, where a model has none; or your own words, where it reads text: what they "
    "become is kept, too.",
)
@with_word_options
def fetch_models(
    names: tuple[str, ...],
    labels: Path | None,
    templates: tuple[str, ...],
    activation: "Activation | None",
) -> None:
    """Download each MODEL into this user's cache, check that it loads, and say how to use it offline.

    Without any it is the default model, that of a command without --model. What is there already is
    not downloaded again.

    \b
        label-images models fetch
        label-images models fetch hf-hub:timm/vit_base_patch16_384.augreg_in21k_ft_in1k
    """
    with at_work() as console:
        from .model_fetch import fetch

        for text in fetch(names, labels, console, templates, activation):
            console.result("fetched", text)


@models.command(
    "convert",
    context_settings=CONTEXT,
    short_help="A checkpoint, or a model and words, as a bundle.",
)
@click.argument("checkpoint")
@click.option("--arch", metavar="NAME", help="Its architecture, as timm names it; another image size resamples the "
              "position embedding. Found from the weights if left out.")  # fmt: skip
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names in class order, one a line, or JSON; or your own words, where it reads text.",
)
@with_word_options
@click.option("--preprocess", type=PREPROCESS, help="How its photos were "
              "prepared. By default as its origin does.")  # fmt: skip
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder, or a file ending in .safetensors.",
)
def convert_model(
    checkpoint: str,
    arch: str | None,
    labels: Path | None,
    templates: tuple[str, ...],
    activation: "Activation | None",
    preprocess: str | None,
    out: Path,
) -> None:
    """Write CHECKPOINT as a bundle: weights, architecture, preprocessing and class names in one.

    \b
        label-images models convert vit.pth --labels classes.txt --out my-vit
        label-images models convert hf-hub:OWNER/CLIP --labels words.txt --out my-words

    With your own words the bundle holds what they became: who uses it needs neither the text tower
    nor its libraries.
    """
    with at_work():
        from .model_texts import Asked, convert

        asked = Asked(checkpoint, labels, arch, preprocess, templates, activation)
        click.echo(convert(asked, out))


@models.command(
    "fit", context_settings=CONTEXT, short_help="Classes of your own, from a folder of examples."
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default="embedded",
    show_default=True,
    help="Whose features to use: anything --model of a run takes, also without a head.",
)
@click.option("--arch", metavar="NAME", help="For a bare checkpoint: its architecture.")
@click.option("--preprocess", type=PREPROCESS, help="For a bare checkpoint: how its photos were "
              "prepared.")  # fmt: skip
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle's folder; that of an earlier fit is replaced.",
)
def fit_model(
    folder: Path, model: str, arch: str | None, preprocess: str | None, out: Path
) -> None:
    """Learn to tell classes apart from FOLDER, which has a sub-folder of photos for each.

    The sub-folders' names are the labels; 20 photos of each are enough, and 5 the least. Says how
    good the result is by cross-validation, which classes are confused, and which photos may lie in
    the wrong folder. Needs scikit-learn: pip install 'label-images[fit]'.

    \b
        label-images models fit my-photos --model embedded --out my-classes
    """
    with at_work() as console:
        from .model_fit import fit

        for line in fit(folder, model, arch, preprocess, out, console):
            console.result("fit", line)


@models.command(
    "quantize", context_settings=CONTEXT, short_help="A model in int8: the fastest on a CPU."
)
@click.argument("model")
@click.option(
    "--calibrate",
    "photos",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder of photos of the kind you label: up to 300 fix the scales, and others are "
    "compared. In sub-folders named as classes, they also say how often each is right.",
)
@click.option("--arch", metavar="NAME", help="For a bare checkpoint: its architecture.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, where MODEL has none; "
              "or your own words, where it reads text.")  # fmt: skip
@with_word_options
@click.option("--preprocess", type=PREPROCESS, help="For a bare checkpoint: how its photos were "
              "prepared.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder.")
def quantize_model(
    model: str,
    photos: Path,
    arch: str | None,
    labels: Path | None,
    templates: tuple[str, ...],
    activation: "Activation | None",
    preprocess: str | None,
    out: Path,
) -> None:
    """Write MODEL as an int8 bundle, and say how well it agrees with itself in float.

    It runs on any CPU, the faster where that has VNNI and no AMX, and on no GPU. Its labels are
    another model's: a table made with MODEL is labelled anew. Needs NNCF: pip install
    'label-images[int8]'.

    \b
        label-images models quantize MODEL --calibrate photos --out my-model-int8
    """
    with at_work() as console:
        from .model_quantise import quantise_model
        from .model_texts import Asked

        asked = Asked(model, labels, arch, preprocess, templates, activation)
        for line in quantise_model(asked, photos, out, console):
            console.result("quantised", line)
