"""What do photos cost that moved or were copied?

    python -m benchmarks.moved --files 100000 1000000 [--photos FOLDER]

First what hashing an image's bytes costs beside decoding them, for photos of 110 KB and of 12
megapixels (benchmarks/photos.py), or those of a folder. Then a tree of empty files of many sizes,
labelled without a model as in benchmarks/scale.py, and its root renamed: `plan` and the run, each as
a process of its own with its time and peak memory; and a night in which nothing changed, to compare.
Last a sub-folder of real photos that is renamed: the run in which they are new and their labels
reused, and that in which they are decoded. The last line is JSON.
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.measure import measure
from benchmarks.photos import large_photo, small_photo

_FILES_EACH = 1_000  # in a folder
_OURS = [sys.executable, "-m", "pipeline.cli"]
_PHOTOS, _REPEATS = 300, 20


def hashing(folder: Path | None, rounds: int = 5) -> dict[str, Any]:
    """Milliseconds of computing time an image, on one core: medians of rounds in turns."""
    from pipeline.load.decode import decode_image, register_formats
    from pipeline.settings import DEFAULT_MAX_PIXELS
    from vit.preprocess import preset

    if folder:
        photos = {str(folder): [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]}
    else:
        photos = {
            "110 KB": [small_photo(seed) for seed in range(20)],
            "12 megapixels": [large_photo(seed) for seed in range(2)],
        }
    register_formats()
    preprocess = preset("vit", 224)
    ways: dict[str, Callable[[bytes], Any]] = {
        "decode": lambda data: decode_image(0, data, preprocess, DEFAULT_MAX_PIXELS),
        "xxh3_128": xxhash.xxh3_128_hexdigest,
    }
    with suppress(ImportError):
        blake3: Any = importlib.import_module("blake3")
        ways["blake3"] = lambda data: blake3.blake3(data).hexdigest()
    results: dict[str, Any] = {}
    for kind, files in photos.items():
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                repeats = 1 if name == "decode" else _REPEATS
                started = time.thread_time()
                for data in files * repeats:
                    way(data)
                spent[name].append((time.thread_time() - started) / len(files) / repeats * 1e3)
        medians = {name: statistics.median(each) for name, each in spent.items()}
        share = {name: each / medians["decode"] for name, each in medians.items()}
        results[kind] = {
            "kb": round(statistics.mean(map(len, files)) / 1e3),
            "ms": {name: round(each, 4) for name, each in medians.items()},
            "of_decode": {name: round(each, 5) for name, each in share.items()},
        }
    return results


def make_tree(folder: Path, n: int) -> Path:
    """Make `n` files with sizes as photos have them, and nothing in them."""
    folder.mkdir()
    for place in range(n):
        if place % _FILES_EACH == 0:
            below = folder / f"{place // _FILES_EACH:05}"
            below.mkdir()
        with open(below / f"photo-{place:08}.jpg", "wb") as file:
            file.truncate(100_000 + place * 7_919 % 4_000_037)
    return folder


def renamed_root(n: int, work: Path) -> dict[str, Any]:
    photos, out = make_tree(work / f"tree-{n}", n), work / f"labels-{n}.parquet"
    _apart(_label, photos, out)
    arguments = [str(photos), "--out", str(out)]
    measure([*_OURS, *arguments, "--quiet"])  # keeps what the model is
    results = {"run, nothing new": measure([*_OURS, *arguments, "--quiet"])}
    photos = photos.rename(work / f"renamed-{n}")
    arguments = [str(photos), "--out", str(out)]
    results["plan, root renamed"] = measure([*_OURS, "plan", *arguments])
    results["run, root renamed"] = measure([*_OURS, *arguments, "--quiet"])
    results["run, nothing new again"] = measure([*_OURS, *arguments, "--quiet"])
    return results


def _label(photos: Path, out: Path) -> None:
    from benchmarks.scale import label_without_model
    from pipeline.settings import Settings

    label_without_model(Settings(paths=(photos,), out=out, model="embedded"))


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do some work in a process of its own: what is measured begins with the memory of this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def renamed_folder(n: int, work: Path) -> dict[str, Any]:
    photos, out = work / "photos", work / "photos.parquet"
    (photos / "a").mkdir(parents=True)
    for place in range(n):
        (photos / "a" / f"{place:05}.jpg").write_bytes(small_photo(place))
    arguments = [str(photos), "--out", str(out), "--model", "embedded", "--quiet"]
    results = {"run, all new": measure([*_OURS, *arguments])}
    (photos / "a").rename(photos / "b")
    results["run, all reused"] = measure([*_OURS, *arguments])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--photos", type=Path, help="JPEGs to hash, in place of made ones")
    parser.add_argument("--renamed", type=int, default=_PHOTOS, help="photos of the last part")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"hashing": _apart(hashing, arguments.photos)}
    print(json.dumps(results["hashing"]))
    with tempfile.TemporaryDirectory() as work:
        steps: list[tuple[str, Callable[[int, Path], dict[str, Any]], int]] = [
            *((f"{n:,} files", renamed_root, n) for n in arguments.files),
            (f"{arguments.renamed:,} photos", renamed_folder, arguments.renamed),
        ]
        steps = [step for step in steps if step[2]]
        for name, step, n in steps:
            results[name] = step(n, Path(work))
            for what, cost in results[name].items():
                seconds = f"{cost['seconds']:8.1f} s {cost['cpu_s']:8.1f} s computing"
                print(f"{name:>16}  {what:<23} {seconds} {cost['peak_mb']:8,} MB")
    print(json.dumps({"benchmark": "moved", "results": results}))


if __name__ == "__main__":
    main()
