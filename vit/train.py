"""Train a Vision Transformer from scratch and write it as a bundle.

    python -m vit.train DATA... --val VAL --classes classes.json --out BUNDLE

DATA are Parquet tables with the columns image (JPEG or PNG bytes) and label (0, 1, ...), or folders
with a folder of images for each class. Half of VAL fits the temperature, the other half judges it;
nothing is trained on it. Images that cannot be read are named and left out, up to one in a hundred.
A killed or interrupted training goes on from its last checkpoint when the same command runs again,
and ends with the same weights.

With --soft-targets the network learns from a teacher too (vit/training/soft_targets.py says what is
in that file). One long training may end more than once: --decay 0 leaves its learning rate at the
top, and a short training --start CHECKPOINT --warmup 0 --full 1 ends a copy of it. A bundle too can
be what a training starts with; where --depth is more than its own, the new blocks begin as ones that
change nothing.
"""

import signal
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import click
import torch
from tqdm import tqdm

from vit.checkpoints.bundle import ModelSpec
from vit.training.card import write_trained
from vit.training.evaluate import judge, predict_logits
from vit.training.labelled_images import LabelledImages, read_classes, read_images
from vit.training.recipe import Recipe
from vit.training.soft_targets import read_soft_targets
from vit.training.trainer import Training

from .classifier import load_classifier
from .config import ViTConfig
from .devices import bf16_support
from .errors import ModelError
from .preprocess import Preprocess


def train(
    training: Training,
    data: LabelledImages,
    preprocess: Preprocess,
    checkpoint: Path,
    save_every_s: float,
    start: Path | None = None,
) -> None:
    """Run a training to its end, going on from `checkpoint` if it is there and saving to it on the
    way; from `start`, another training's checkpoint, if it is not.
    """
    if checkpoint.exists():
        training.load(checkpoint)
        if (start is None) != (training.start is None):
            raise ModelError(
                f"{checkpoint} is of another training: it began with "
                f"{'first weights' if training.start is None else 'the weights of a third one'}; "
                "give --start as then, or remove it"
            )
        click.echo(f"going on from {checkpoint}, step {training.step:,} of {training.n_steps:,}")
    elif start and (start.is_dir() or start.suffix == ".safetensors"):
        bundle = load_classifier(str(start))
        training.begin_with(bundle.model.state_dict(), bundle.model.config, bundle.name)
        click.echo(
            f"beginning with the weights of {bundle.name}, {bundle.model.config.depth} blocks deep"
        )
    elif start:
        training.begin_from(start)
        assert training.start
        click.echo(f"beginning with the weights of {start}, its step {training.start['step']:,}")
    else:
        training.whiten(data, preprocess)
    saved_at, mean_loss = time.monotonic(), 0.0
    # A signal waits for the end of the step: a checkpoint between two optimisers' steps would not
    # go on as it was.
    signals: list[int] = []
    handlers = {
        number: signal.signal(number, lambda *_: signals.append(1)) for number in (SIGINT, SIGTERM)
    }
    with tqdm(
        total=training.n_steps, initial=training.step, desc="train", unit="step", smoothing=0.05
    ) as progress:
        while training.step < training.n_steps and not signals:
            loss = training.run_step(data, preprocess)
            if training.step % 20 == 0:  # reading the loss waits for the device
                mean_loss = 0.8 * (mean_loss or loss.item()) + 0.2 * loss.item()
                progress.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            progress.update()
            if time.monotonic() - saved_at > save_every_s:
                training.save(checkpoint)
                saved_at = time.monotonic()
    training.save(checkpoint)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if signals:
        raise KeyboardInterrupt


def _recipe_options(command: Any) -> Any:
    """An option for each field of Recipe."""
    for setting in reversed(fields(Recipe)):
        name, help = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
        option = click.option(
            name, type=type(setting.default), default=setting.default, show_default=True, help=help
        )
        command = option(command)
    return command


@click.command(
    help=__doc__.replace("    python", "\b\n    python"),
    context_settings={"max_content_width": 120},
)
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--val",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="images never trained on",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="the bundle's folder")
@click.option(
    "--classes",
    type=click.Path(exists=True, path_type=Path),
    help="class names [default: DATA's folders]",
)
@click.option("--name", help="the model's name [default: OUT's]")
@click.option("--img-size", default=64, show_default=True, help="pixels")
@click.option("--patch-size", default=8, show_default=True, help="pixels")
@click.option("--embed-dim", default=192, show_default=True, help="width")
@click.option("--depth", default=6, show_default=True, help="encoder blocks")
@click.option("--n-heads", default=3, show_default=True, help="attention heads")
@click.option(
    "--drop-path", default=0.1, show_default=True, help="stochastic depth of the last block"
)
@_recipe_options
@click.option("--device", help="such as cuda:1 [default: a GPU if there is one]")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="[default: OUT.checkpoint]")
@click.option(
    "--soft-targets",
    type=click.Path(exists=True, path_type=Path),
    help="a teacher's, of DATA's images",
)
@click.option(
    "--start",
    type=click.Path(exists=True, path_type=Path),
    help="another training's checkpoint to begin with, or a bundle of as many or fewer blocks",
)
@click.option("--save-every", default=300.0, show_default=True, help="seconds between checkpoints")
def main(
    data: tuple[Path, ...],
    val: Path,
    out: Path,
    classes: Path | None,
    name: str | None,
    device: str | None,
    precision: str,
    checkpoint: Path | None,
    soft_targets: Path | None,
    start: Path | None,
    save_every: float,
    **settings: Any,
) -> None:
    try:
        recipe = Recipe(**{setting.name: settings.pop(setting.name) for setting in fields(Recipe)})
        if bool(recipe.distil) != bool(soft_targets):
            raise ModelError(
                "--distil and --soft-targets go together: the one is the share of the loss that "
                "the other gets"
            )
        names = read_classes(classes, data[0])
        config = ViTConfig(n_classes=len(names.labels), **settings)
        if config.img_size % config.patch_size:
            raise ModelError(
                f"an image of {config.img_size} pixels cannot be cut into patches of "
                f"{config.patch_size}; choose an image size that is a multiple of the patch size"
            )
        preprocess = Preprocess(config.img_size, config.img_size)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        bf16 = bool(bf16_support(chosen)) if precision == "auto" else precision == "bf16"
        images, val_images = (
            read_images(data, preprocess, names),
            read_images([val], preprocess, names),
        )
        for unreadable in (*images.unreadable, *val_images.unreadable):
            click.echo(f"left out, since it cannot be read: {unreadable}", err=True)
        if len(val_images) < 2:
            raise ModelError(
                f"{val} has a single image; half of them fit the temperature and half judge it: "
                "give more"
            )
        if soft_targets:
            soft = read_soft_targets(soft_targets, images.images, config.n_classes)
            images = replace(images, soft=soft.to(chosen))
        training = Training(
            config, recipe, len(images), chosen, bf16, images.soft.sha256 if images.soft else None
        )
        if chosen.type == "cuda":
            images = replace(images, images=images.images.to(chosen))
        train(
            training,
            images,
            preprocess,
            checkpoint or out.with_name(out.name + ".checkpoint"),
            save_every,
            start,
        )
    except ModelError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)
    model = training.averaged_model().half().float()  # judged as it is shipped, in fp16
    spec = ModelSpec(config, preprocess, names.labels, names.ids, name=name or out.name)
    report: dict[str, Any] = {
        "recipe": asdict(recipe),
        "start": training.start,
        "data": {
            "images": len(images),
            "validation_images": len(val_images),
            "unreadable_images": len(images.unreadable),
            "unreadable_validation_images": len(val_images.unreadable),
            "soft_targets": training.settings["soft_targets"],
        },
        "machine": {
            "device": str(chosen),
            "precision": "bf16" if bf16 else "fp32",
            "torch": torch.__version__,
        },
        "measured": judge(predict_logits(model, val_images, preprocess), val_images.targets),
    }
    write_trained(spec, model.half().state_dict(), report, out)
    click.echo((out / "README.md").read_text())
    click.echo(
        f"written: {out}; label photos with it: label-images PHOTOS --model {out} --out "
        "labels.parquet"
    )


if __name__ == "__main__":
    main()
