"""label-images and what people use instead, side by side: the same photos, the same weights.

    python -m benchmarks.compare [PHOTOS] --arch vit_base_patch16_224 --images 200 --photos small
        --precision bf16 int8 --only timm openvino --runtime openvino

Every contender is a whole process, from start to the table on disk. They take turns, round by
round, so that a slow minute of the machine hits all of them; the first round, which fills caches,
is not counted. Printed: the median and spread of each in seconds, and what label-images takes of
it; label-images' model alone beside OpenVINO's own benchmark on the same network, and whole runs
beside what the cores allow; and each ratio that has a goal beside that. PHOTOS is a folder of
JPEGs, or without it 110 KB photos made here; the sets made of it: `small` as they are, `large` 12
megapixels each, `mixed` small and large, PNG, WebP, progressive and CMYK.

int8 is label-images' quantised bundle (`models quantize`, where this version has it), and for
OpenVINO's script NNCF's graph, or that of --int8-graph. A contender that is not installed is left
out, by name. Needs label-images[bench]. The last line is JSON.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vit.devices import bf16_support

from . import openvino_peer
from .contenders import BATCH_SIZE
from .goals import report_goals
from .machine import describe_cpu, load_average
from .models import make_models
from .photos import make_photos, write_photos

_NEEDS = {
    "one_by_one": "torchvision",
    "script": "timm",
    "timm": "timm",
    "transformers": "transformers",
    "openvino": "openvino",
}
_SOURCES = 100  # photos made where none were given, at most


def commands(arguments: argparse.Namespace, photos: Path, work: Path) -> dict[str, list[str]]:
    """The command of each contender in each precision that it has, by name."""
    python = [sys.executable, "-m"]
    found = {}
    for precision in arguments.precision:
        ours = ours_with(arguments, work, precision)
        if ours is not None:
            command = [*python, "pipeline.cli", str(photos), *ours, "--restart", "--quiet"]
            found[f"label-images, {precision}"] = [*command, "--out", str(work / "ours.parquet")]
        for name in arguments.only:
            graph = openvino_peer.graph_of(work, precision)
            # All but OpenVINO run floats alone; one by one nobody thinks of autocast.
            if not graph.exists() if name == "openvino" else precision == "int8":
                continue
            command = [*python, "benchmarks.contenders", name, str(photos), str(work)]
            command += [str(work / f"{name}.parquet"), "--precision", precision]
            found[f"{name}, {precision}"] = command
    return found


def ours_with(arguments: argparse.Namespace, work: Path, precision: str) -> list[str] | None:
    """label-images' model, precision and runtime; None where this version has no int8."""
    runtime = ["--runtime", arguments.runtime] if arguments.runtime else []
    if precision != "int8":
        return ["--model", str(work / "bundle"), "--precision", precision, *runtime]
    quantised = work / "bundle-int8"
    return ["--model", str(quantised), *runtime] if quantised.exists() else None


def prepare(arguments: argparse.Namespace, photos: Path, work: Path) -> None:
    """Make what a contender's user has from an earlier day: its model, converted and quantised."""
    make_models(arguments.arch, work)
    if "openvino" in arguments.only:
        openvino_peer.write_graph(work, BATCH_SIZE)
    if "int8" not in arguments.precision:
        return
    if arguments.int8_graph and "openvino" in arguments.only:
        for suffix in (".xml", ".bin"):
            graph = openvino_peer.graph_of(work, "int8").with_suffix(suffix)
            shutil.copy(arguments.int8_graph.with_suffix(suffix), graph)
    elif "openvino" in arguments.only:
        openvino_peer.write_int8(work, photos, BATCH_SIZE)
    quantise = [sys.executable, "-m", "pipeline.cli", "models", "quantize"]
    if subprocess.run([*quantise, "--help"], capture_output=True, check=False).returncode:
        print("label-images in int8: left out, this version cannot quantise")
        return
    run(
        [
            *quantise,
            str(work / "bundle"),
            "--calibrate",
            str(photos),
            "--out",
            f"{work}/bundle-int8",
        ]
    )


def take_turns(contenders: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Run each contender once a round; return the seconds of each, without the first round's."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, command in contenders.items():
            started = time.perf_counter()
            run(command)
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_parts(
    arguments: argparse.Namespace, photos: Path, work: Path
) -> dict[str, dict[str, float]]:
    """By precision, images/s: label-images' decoding and model alone, the bound that follows, and
    the model's own graph by OpenVINO's benchmark, in batches of the same size, with the better of two
    settings; in turns, each for the same seconds, medians.
    """
    parts: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for precision in arguments.precision:
            ours = ours_with(arguments, work, precision)
            if ours is None:
                continue
            rates = parts.setdefault(precision, {})
            command = [sys.executable, "-m", "benchmarks.stages", str(photos), *ours]
            command += ["--seconds", str(arguments.seconds)]
            measured = json.loads(run(command).splitlines()[-1])
            for name in ("decode_only", "model_only", "bound"):
                rates.setdefault(name, []).append(measured[name])
            if measured["runtime"] == "openvino":
                batch_size = measured["batch_size"]
                graph = work / "openvino" / f"ours-{precision}-{batch_size}.xml"
                if not graph.exists():
                    openvino_peer.write_ours(Path(ours[1]), precision, batch_size, graph)
                for hint in openvino_peer.PERFORMANCE_HINTS:
                    rate = openvino_peer.model_only(graph, precision, hint, arguments.seconds)
                    rates.setdefault(hint, []).append(rate)
    return {precision: _medians(rates) for precision, rates in parts.items()}


def _medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """The median of each, and of OpenVINO's benchmark the better one of its settings.

    Not the better one of each round: that would be the luckier one.
    """
    medians = {name: round(statistics.median(all_), 2) for name, all_ in rates.items()}
    theirs = [medians[hint] for hint in openvino_peer.PERFORMANCE_HINTS if hint in medians]
    return {**medians, "openvino_model_only": max(theirs)} if theirs else medians


def run(command: list[str]) -> str:
    """Run a command and return what it printed; end with its error where it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{ran.stderr}")
    return ran.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS", nargs="?")
    parser.add_argument("--arch", default="vit_tiny_patch16_224", help="[default: %(default)s]")
    parser.add_argument(
        "--photos",
        choices=["small", "large", "mixed"],
        default="small",
        help="[default: %(default)s]",
    )
    parser.add_argument("--images", type=int, default=200, help="[default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[default: %(default)s]")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", "bf16", "int8"],
        help="[default: bf16 where this machine has it, else fp32]",
    )
    parser.add_argument("--only", nargs="+", choices=_NEEDS, help="[default: all but one_by_one]")
    parser.add_argument(
        "--runtime",
        choices=["auto", "openvino", "torch"],
        default="openvino",
        help="what runs label-images' model [default: %(default)s]",
    )
    parser.add_argument("--int8-graph", type=Path, metavar="XML", help="for OpenVINO's script")
    parser.add_argument(
        "--seconds",
        type=int,
        default=10,
        help="in which each model is measured alone [default: %(default)s]",
    )
    arguments = parser.parse_args()
    has_bf16 = bf16_support(torch.device("cpu"))
    arguments.precision = arguments.precision or ["bf16" if has_bf16 else "fp32"]
    wanted = arguments.only or [name for name in _NEEDS if name != "one_by_one"]
    arguments.only = [name for name in wanted if importlib.util.find_spec(_NEEDS[name])]
    for name in set(wanted) - set(arguments.only):
        print(f"{name}: left out, {_NEEDS[name]} is not installed")
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = arguments.source or write_photos(work / "source", min(_SOURCES, arguments.images))
        photos = make_photos(source, arguments.photos, arguments.images, work)
        prepare(arguments, photos, work)
        seconds = take_turns(commands(arguments, photos, work), arguments.rounds)
        parts = measure_parts(arguments, photos, work)
    report(arguments, load, seconds, parts)


def report(
    arguments: argparse.Namespace,
    load: float,
    seconds: dict[str, list[float]],
    parts: dict[str, dict[str, float]],
) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{arguments.images} {arguments.photos} photos, {arguments.arch}, {arguments.rounds} "
        f"rounds, whole processes; load before it {load}"
    )
    ours = [name for name in medians if name.startswith("label-images")]
    print(f"{'':<24} {'median s':>9} {'spread s':>15}" + "".join(f"  {name} / it" for name in ours))
    for name, times in seconds.items():
        spread = f"{min(times):.2f}..{max(times):.2f}"
        shares = (f"{medians[each] / medians[name]:>{len(each) + 7}.2f}" for each in ours)
        print(f"{name:<24} {medians[name]:9.2f} {spread:>15}" + "".join(shares))
    for precision, rates in parts.items():
        print(f"{precision}, images/s: {', '.join(f'{n} {rate}' for n, rate in rates.items())}")
    record: dict[str, Any] = {
        "benchmark": "compare",
        "arch": arguments.arch,
        "photos": arguments.photos,
        "images": arguments.images,
        "runtime": arguments.runtime,
        "cpu": describe_cpu(),
        "load_before": load,
        "median_s": {name: round(median, 3) for name, median in medians.items()},
        "spread_s": {n: [round(min(t), 3), round(max(t), 3)] for n, t in seconds.items()},
        "ratio": {
            each: {name: round(medians[each] / median, 3) for name, median in medians.items()}
            for each in ours
        },
        "images_per_s": parts,
        "goals": report_goals(arguments.arch, arguments.photos, arguments.images, medians, parts),
        "versions": _versions(),
    }
    print(json.dumps(record))


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchvision", "timm", "transformers", "pillow", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
