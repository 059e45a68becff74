"""label-images and what people use instead, side by side: the same photos, the same weights.

    python -m benchmarks.compare PHOTOS --arch vit_tiny_patch16_224 --images 200 --photos small

Every contender is a whole process, from start to the table on disk. They take turns, round by
round, so that a slow minute of the machine hits all of them. Printed: the median and spread of each
in seconds, and label-images' time as a share of it. PHOTOS is a folder of JPEGs; the sets made of
it: `small` as they are, `large` 12 megapixels each, `mixed` small and large, PNG, WebP, progressive
and CMYK. Needs label-images[bench]. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vit.checkpoints.bundle import write_bundle
from vit.classifier import load_classifier
from vit.config import variant
from vit.devices import bf16_support

LARGE = (4000, 3000)
_DIFFERENT = 24  # pictures made of each kind; the set is filled up with links to them


def make_photos(source: Path, kind: str, n: int, out: Path) -> Path:
    """Make a folder of `n` photos of a kind out of the JPEGs in `source`."""
    originals = sorted(
        path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
    )
    folder, made = out / kind, out / f"{kind}-files"
    folder.mkdir()
    made.mkdir()
    if kind == "small":
        files = originals
    else:
        chosen = originals[: min(_DIFFERENT, n)]
        files = [_make_photo(path, kind, place, made) for place, path in enumerate(chosen)]
    for place in range(n):
        file = files[place % len(files)]
        os.link(_copy(file, made), folder / f"{place:06}{file.suffix}")
    return folder


def _copy(file: Path, made: Path) -> Path:
    copy = made / file.name
    if not copy.exists():
        copy.write_bytes(file.read_bytes())
    return copy


def _make_photo(path: Path, kind: str, place: int, made: Path) -> Path:
    image = Image.open(path).convert("RGB")
    large = image.resize(LARGE, Image.Resampling.BICUBIC)
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (large, ".jpg", {"quality": 90}),
        (image, ".png", {}),
        (image, ".webp", {"quality": 85}),
        (image, ".jpg", {"quality": 90, "progressive": True}),
        (image.convert("CMYK"), ".jpg", {"quality": 90}),
        (image, ".jpg", {"quality": 90}),
    ]
    picture, suffix, options = variants[0] if kind == "large" else variants[place % len(variants)]
    file = made / f"{place:03}{suffix}"
    picture.save(file, **options)
    return file


def make_models(arch: str, out: Path) -> None:
    """Write the same random weights as transformers has them, and as a bundle with timm's keys."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = variant(arch)
    numbers: dict[str, Any] = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.n_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "num_labels": config.n_classes,
    }
    ViTForImageClassification(TheirConfig(**numbers)).save_pretrained(out / "transformers")
    size = {"height": config.img_size, "width": config.img_size}
    ViTImageProcessor(size=size, resample=2).save_pretrained(out / "transformers")
    classifier = load_classifier(str(out / "transformers"))
    write_bundle(classifier.spec, classifier.model.state_dict(), out / "bundle")
    file = out / "bundle" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"timm": arch}))


def commands(
    photos: Path, models: Path, work: Path, precision: str, slow: bool
) -> dict[str, list[str]]:
    """The command of each contender; with `slow` also those that take very long."""

    def contender(name: str, precision: str) -> list[str]:
        arguments = [
            name,
            str(photos),
            str(models),
            str(work / f"{name}.parquet"),
            "--precision",
            precision,
        ]
        return [sys.executable, "-m", "benchmarks.contenders", *arguments]

    ours = [sys.executable, "-m", "pipeline.cli", str(photos), "--out", str(work / "ours.parquet")]
    found = {
        "label-images": [
            *ours,
            "--model",
            str(models / "bundle"),
            "--precision",
            precision,
            "--restart",
            "--quiet",
        ]
    }
    if slow:
        found["one by one, fp32"] = contender("one_by_one", "fp32")
    found[f"script, {precision}"] = contender("script", precision)
    for each in dict.fromkeys(["fp32", precision]):
        found[f"timm, {each}"] = contender("timm", each)
    found[f"transformers, {precision}"] = contender("transformers", precision)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS")
    parser.add_argument("--arch", default="vit_tiny_patch16_224")
    parser.add_argument("--photos", choices=["small", "large", "mixed"], default="small")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="[default: bf16 where this machine has it]"
    )
    parser.add_argument("--skip-slow", action="store_true", help="leave out the one-by-one way")
    arguments = parser.parse_args()
    precision = arguments.precision or ("bf16" if bf16_support(torch.device("cpu")) else "fp32")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = make_photos(arguments.source, arguments.photos, arguments.images, work)
        make_models(arguments.arch, work)
        contenders = commands(photos, work, work, precision, not arguments.skip_slow)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(arguments.rounds + 1):
            for name, command in contenders.items():
                started = time.perf_counter()
                run(command)
                if round_:  # the first round fills the disk cache
                    seconds[name].append(time.perf_counter() - started)
        stages = [
            sys.executable,
            "-m",
            "benchmarks.stages",
            str(photos),
            "--model",
            str(work / "bundle"),
        ]
        measured = json.loads(run([*stages, "--precision", precision]).splitlines()[-1])
    report(arguments, precision, seconds, measured)


def run(command: list[str]) -> str:
    """Run a command and return what it printed; end with its error where it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{ran.stderr}")
    return ran.stdout


def report(
    arguments: argparse.Namespace, precision: str, seconds: dict[str, list[float]], stages: Any
) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = medians["label-images"]
    rates = {
        "whole": round(arguments.images / ours, 2),
        **{name: stages[name] for name in ("decode_only", "model_only", "bound")},
    }
    print(
        f"{arguments.images} {arguments.photos} photos, {arguments.arch}, {arguments.rounds} "
        "rounds, whole processes"
    )
    print(f"{'':<24} {'median s':>9} {'spread s':>15} {'ours / it':>10}")
    for name, times in seconds.items():
        spread = f"{min(times):.2f}..{max(times):.2f}"
        print(f"{name:<24} {medians[name]:9.2f} {spread:>15} {ours / medians[name]:10.2f}")
    print(f"label-images, images/s: {', '.join(f'{name} {rate}' for name, rate in rates.items())}")
    record = {
        "benchmark": "compare",
        "arch": arguments.arch,
        "photos": arguments.photos,
        "images": arguments.images,
        "precision": precision,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "median_s": {name: round(median, 3) for name, median in medians.items()},
        "ratio": {name: round(ours / median, 3) for name, median in medians.items()},
        "images_per_s": rates,
        "versions": {
            name: version(name)
            for name in ("torch", "torchvision", "timm", "transformers", "pillow")
        },
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
