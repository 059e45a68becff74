"""All that is to be known of label-images on a GPU, in one command of under nine minutes.

    python -m benchmarks.gpu --out gpu-results

It needs this repository, its dependencies and a GPU; no network, no photos and no weights of
anybody's: photos of 110 KB are made here, and networks have random weights. Measured, each part in
a process of its own, so that one that fails or takes too long costs no other:

    decode    what the workers deliver when nobody keeps them waiting
    main      what the main process can handle (benchmarks/main_process.py)
    model     ViT-Ti/16, B/16 and L/16 at 224 pixels: eager, compiled, CUDA graphs, bf16, fp16, and
              as a run does it (benchmarks/gpu_model.py)
    memory    a batch that the device's memory does not hold
    whole     whole runs, with memory over time

`--out` gets gpu.json and gpu.md, written anew after each part. `--toy --device cpu` does all that a
CPU can of it, at toy size; what needs CUDA is named as left out. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .machine import describe_cpu, load_average, usable_cores
from .models import TOY, make_bundle
from .photos import write_photos

TI, B, L = (f"vit_{size}_patch16_224" for size in ("tiny", "base", "large"))


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `whole` are (architecture, photos, compiled or as is chosen)."""

    archs: tuple[str, ...]
    batch_size: int
    seconds: float  # of each measurement of a model
    decode_images: int
    main_images: int
    retry_images: int
    whole: tuple[tuple[str, int, bool | None], ...]
    minutes: float


FULL = Sizes(
    archs=(TI, B, L),
    batch_size=256,
    seconds=1.5,
    decode_images=40_000,
    main_images=60_000,
    retry_images=2048,
    # 100,000 are compiled for without being asked; a ViT-L labels some 1,000 a second.
    whole=((TI, 100_000, None), (B, 30_000, False), (B, 30_000, True), (L, 12_000, False)),
    minutes=8.5,
)
SMALL = Sizes((TOY,), 4, 0.1, 12, 64, 16, ((TOY, 12, False),), 20)

# The longest that a part may take, in seconds; whatever it has printed by then counts.
_LIMITS_S = {"decode": 60, "main": 60, "model": 110, "memory": 45, "whole": 75}


def parts(sizes: Sizes) -> Iterator[tuple[str, list[str]]]:
    """What is measured, in order, with its arguments: what matters least comes last."""
    yield "decode", ["--images", str(sizes.decode_images), "--arch", sizes.archs[0]]
    yield "main", ["--images", str(sizes.main_images), "--arch", sizes.archs[0]]
    for arch in sizes.archs:
        yield "model", ["--arch", arch]
        for arch_, n, compile in sizes.whole:
            if arch_ == arch:
                how = [] if compile is None else ["--compile" if compile else "--no-compile"]
                yield "whole", ["--arch", arch, "--images", str(n), *how]
        if arch == sizes.archs[min(1, len(sizes.archs) - 1)]:
            yield "memory", ["--arch", arch]


def measure_all(sizes: Sizes, device: str, out: Path) -> dict[str, Any]:
    """Run each part in a process of its own; write what is known so far after each."""
    from .gpu_report import summarise, to_markdown

    began = time.monotonic()
    deadline = began + sizes.minutes * 60
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"benchmark": "gpu", **_machine(device), "parts": []}
    with tempfile.TemporaryDirectory() as folder:
        n_photos = max([sizes.decode_images, *(n for _, n, _ in sizes.whole)])
        write_photos(Path(folder) / "photos", n_photos)
        for name, arguments in parts(sizes):
            started = time.monotonic()
            limit_s = deadline - started
            if sizes is not SMALL:  # which may run on a machine that is busy with other tests
                limit_s = min(_LIMITS_S[name], limit_s)
            command = [*arguments, "--device", device, "--work", folder]
            command += ["--toy"] if sizes is SMALL else []
            records, problem = run_part_apart(name, command, limit_s)
            print(f"{name} {' '.join(arguments)}: {time.monotonic() - started:.0f} s {problem}")
            part = {"part": name, "arguments": arguments, "records": records, "problem": problem}
            result["parts"].append(part | {"seconds": round(time.monotonic() - started, 1)})
            result["summary"] = summarise(result["parts"])
            result["minutes"] = round((time.monotonic() - began) / 60, 2)
            (out / "gpu.json").write_text(json.dumps(result, indent=1))
            (out / "gpu.md").write_text(to_markdown(result))
    return result


def run_part_apart(name: str, arguments: list[str], limit_s: float) -> tuple[list[Any], str]:
    """The records a part printed, and what became of it where it did not end well."""
    if limit_s < 10:
        return [], "not reached: the time was up"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as problems:
        process = subprocess.Popen(command, stdout=out, stderr=problems)
        try:
            code = process.wait(limit_s)
            problem = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            problem = f"ended after {limit_s:.0f} s, its limit"
        out.seek(0)
        problems.seek(0)
        records = [json.loads(line) for line in out if line.startswith("{") and line[-1] == "\n"]
        if problem:
            problem += f"\n{problems.read()[-1500:]}"
    return records, problem


def run_part(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one part in this process; yield its records as they come."""
    import torch

    from . import gpu_model, gpu_runs, main_process

    sizes = SMALL if arguments.toy else FULL
    device, arch = torch.device(arguments.device), arguments.arch
    on_gpu = device.type == "cuda"
    photos = arguments.work / "photos"
    if arguments.part == "main":
        yield main_process.measure(arguments.images, sizes.batch_size, None, arch)
        return
    bundle = arguments.work / f"bundle-{arch}"
    classifier = make_bundle(arch, bundle)
    if arguments.part == "decode":
        workers = max(1, usable_cores() - 1)
        yield gpu_runs.measure_decoding(
            photos, arguments.images, classifier.preprocess, workers, sizes.batch_size, on_gpu
        )
    elif arguments.part == "model":
        for record in gpu_model.measure_model(classifier, device, sizes.batch_size, sizes.seconds):
            yield {"arch": arch, **record}
    elif arguments.part == "memory":
        yield gpu_model.run_out_of_memory(classifier, device, sizes.retry_images)
    else:
        settings = {
            "files_from": str(_list(photos, arguments.images, arguments.work / f"{arch}.txt")),
            "out": str(arguments.work / f"{arch}-{arguments.compile}.parquet"),
            "model": str(bundle),
            "device": arguments.device,
            "compile": arguments.compile,
            "batch_size": sizes.batch_size,
        }
        whole = gpu_runs.run_whole(settings, on_gpu)
        yield {"arch": arch, "compile": arguments.compile, **whole}


def _list(photos: Path, n: int, file: Path) -> Path:
    """Write a list of the first `n` photos, for --files-from."""
    names = sorted(path.name for path in photos.iterdir())[:n]
    file.write_text("".join(f"{photos / name}\n" for name in names))
    return file


def _machine(device: str) -> dict[str, Any]:
    import torch

    from . import gpu_runs

    versions = {}
    for name in ("torch", "torchvision", "timm", "triton", "pillow", "pyarrow", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    cuda = str(torch.version.cuda)
    return {
        "device": device,
        "gpu": gpu_runs.describe_gpu() if device.startswith("cuda") else None,
        "cpu": describe_cpu(),
        "load_before": load_average(),
        "versions": versions | {"python": sys.version.split()[0], "cuda": cuda},
    }


def measure_on(device: str, is_toy: bool, out: Path) -> dict[str, Any]:
    """Measure all there is on a device. Ends the process where that is not here."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here; `--toy --device cpu` does what a CPU can of it")
    return measure_all(SMALL if is_toy else FULL, device, out)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    # One part in this process, as the command starts itself:
    parser.add_argument("--part", choices=_LIMITS_S, help=argparse.SUPPRESS)
    parser.add_argument("--arch", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help=argparse.SUPPRESS
    )
    return parser


def main() -> None:
    arguments = argument_parser().parse_args()
    if arguments.part:
        for record in run_part(arguments):
            print(json.dumps(record), flush=True)
        return
    result = measure_on(arguments.device, arguments.toy, arguments.out)
    print((arguments.out / "gpu.md").read_text())
    print(json.dumps({key: value for key, value in result.items() if key != "parts"}))


if __name__ == "__main__":
    main()
