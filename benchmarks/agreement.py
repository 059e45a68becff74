"""Does label-images give the labels timm gives? Same weights, same photos, each side its own way.

    python -m benchmarks.agreement PHOTOS [--arch vit_tiny_patch16_224] [--precision fp32] [--make
    1000 --side 3]

A timm model with random weights, and a head scaled so that its probabilities are peaked and differ
from photo to photo, is saved with save_for_hf. timm's own model and transforms (Pillow, fp32) label
each photo one by one; label-images runs as a process on the folder. Printed: how often the best
class is the same, and how far the best probability is off; and the same for the photos that were
decoded at a fraction of their size. --make makes many and large photos of a few. The last line is
JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf


def timm_inputs(model: Any, paths: list[Path]) -> torch.Tensor:
    """[N, 3, H, W]: each photo through the transforms timm resolves for its own model."""
    transform = create_transform(**resolve_model_data_config(model))
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def make_photos(paths: list[Path], n: int, side: int, shorter: int | None, out: Path) -> None:
    """Write `n` JPEGs of `side` x `side` random parts of photos each, with at least 60% of their
    width and height.

    Many of a few; and put together from several, ordinary photos make large ones with a camera's
    detail.
    """
    generator = np.random.default_rng(0)

    def part() -> Image.Image:
        image = Image.open(paths[generator.integers(len(paths))]).convert("RGB")
        width, height = (int(length * generator.uniform(0.6, 1)) for length in image.size)
        left, top = (
            int(generator.integers(0, room + 1))
            for room in (image.width - width, image.height - height)
        )
        return image.crop((left, top, left + width, top + height))

    for number in range(n):
        parts = [[part() for _ in range(side)] for _ in range(side)]
        width = min(sum(image.width for image in row) for row in parts)
        height = sum(min(image.height for image in row) for row in parts)
        whole, top = Image.new("RGB", (width, height)), 0
        for row in parts:
            left = 0
            for image in row:
                whole.paste(image, (left, top))
                left += image.width
            top += min(image.height for image in row)
        if shorter:
            scale = shorter / min(width, height)
            whole = whole.resize(
                (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
            )
        whole.save(out / f"{number:05}.jpg", quality=92)


def random_model(arch: str, paths: list[Path], n_classes: int = 100) -> Any:
    """A timm model whose random head is centred and scaled to a mean best probability of about 0.7."""
    torch.manual_seed(0)
    model: Any = timm.create_model(arch, num_classes=n_classes).eval()
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "blocks" in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name == "patch_embed.proj.weight":
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        inputs = timm_inputs(model, paths[:: max(1, len(paths) // 32)])
        features = torch.cat(
            [
                model.forward_head(model.forward_features(x), pre_logits=True)
                for x in inputs.split(8)
            ]
        )
        weight = torch.randn(n_classes, features.shape[1])
        logits = features @ weight.T
        offset = logits.mean(dim=0)
        scale = 1.0
        while torch.softmax((logits - offset) * scale, dim=-1).amax(dim=-1).mean() < 0.7:
            scale *= 1.05
        model.head.weight.copy_(weight * scale)
        model.head.bias.copy_(-offset * scale)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument(
        "--make", type=int, metavar="N", help="label N photos made of parts of these"
    )
    parser.add_argument(
        "--side", type=int, default=1, help="a made photo is SIDE x SIDE parts large"
    )
    parser.add_argument(
        "--shorter", type=int, metavar="PIXELS", help="the shorter side of a made photo"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        paths = photos_in(arguments.photos)
        if arguments.make:
            make_photos(paths, arguments.make, arguments.side, arguments.shorter, Path(made))
            paths = photos_in(Path(made))
        compare(arguments, paths)


def photos_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )


def compare(arguments: argparse.Namespace, paths: list[Path]) -> None:
    model = random_model(arguments.arch, paths)
    with torch.inference_mode():
        probabilities = [
            torch.softmax(model(x), dim=-1) for x in timm_inputs(model, paths).split(8)
        ]
    expected = torch.cat(probabilities).numpy()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        names = [f"class {i}" for i in range(expected.shape[1])]
        save_for_hf(
            model, work + "/model", model_config={"label_names": names}, safe_serialization=True
        )
        for precision in arguments.precision:
            out = f"{work}/{precision}.parquet"
            command: list[str] = [
                sys.executable,
                "-m",
                "pipeline.cli",
                str(paths[0].parent),
                "--out",
                out,
            ]
            subprocess.run(
                [
                    *command,
                    "--model",
                    f"{work}/model",
                    "--precision",
                    precision,
                    "--quiet",
                    "--audit",
                    "0",
                ],
                check=True,
            )
            rows = {row["path"]: row for row in pq.read_table(out).to_pylist()}
            ours = [rows[path.name] for path in paths]
            same = np.array([row["class_id"] for row in ours]) == expected.argmax(axis=1)
            difference = np.abs(
                np.array([row["probability"] for row in ours]) - expected.max(axis=1)
            )
            results[precision] = {
                "top1_same": round(float(same.mean()), 4),
                "mean_difference": round(float(difference.mean()), 5),
                "largest_difference": round(float(difference.max()), 5),
            }
            scaled = np.array(["scaled_decode" in row["decode_notes"] for row in ours])
            if scaled.any():
                results[precision] |= {
                    "scaled_decodes": int(scaled.sum()),
                    "top1_same_of_those": round(float(same[scaled].mean()), 4),
                }
            print(f"{arguments.arch} {precision}: {results[precision]}")
    distinct = len(set(expected.argmax(axis=1).tolist()))
    print(
        f"timm itself: {distinct} different best classes, mean best probability "
        f"{expected.max(axis=1).mean():.2f}"
    )
    print(
        json.dumps(
            {
                "benchmark": "agreement",
                "arch": arguments.arch,
                "photos": len(paths),
                "distinct": distinct,
                **results,
            }
        )
    )


if __name__ == "__main__":
    main()
