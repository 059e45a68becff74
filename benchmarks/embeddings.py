"""What does --embeddings cost: in a first night, in every night after it, and on disk?

    python -m benchmarks.embeddings PHOTOS --images 120 --rows 100000 --new 20 --rounds 5

first night    `--images` photos of 12 megapixels made of the JPEGs in PHOTOS, all new (--restart)
another night  `--new` more of them come to a table of `--rows` rows with made-up labels and
               embeddings

Both with a ViT-B/16 of random weights, whole commands, with --embeddings and without in turns; the
ratio is the median of the rounds' own. Bytes are those of the first night's rows as they lie in the
Parquet files, without what each file says once: in bf16 about half of what they are in fp32, as
features have half the digits. Made-up ones are fp32. The last line is JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.settings import Settings
from pipeline.table.table import Table

from .measure import measure
from .photos import make_photos
from .relabel import make_model
from .scale import label_without_model, make_tree

_WITHOUT, _WITH = "without", "with"


def command(photos: Path, work: Path, model: Path, name: str, *options: str) -> list[str]:
    """The command that labels photos into the table of a name, with embeddings or without."""
    out = work / f"{name}.parquet"
    words = [sys.executable, "-m", "pipeline.cli", str(photos), "--out", str(out), "--quiet"]
    beside = ["--embeddings", str(work / "embeddings")] if name == _WITH else []
    return [*words, "--model", str(model), *beside, *options]


def measure_first(photos: Path, work: Path, model: Path, rounds: int) -> dict[str, Any]:
    """Label all photos anew, in turns; the first round, which fills caches, is not counted."""
    work.mkdir()
    seconds: dict[str, list[float]] = {_WITHOUT: [], _WITH: []}
    for round_ in range(rounds + 1):
        for name, times in seconds.items():
            taken = measure(command(photos, work, model, name, "--restart"))["seconds"]
            times.extend([taken] if round_ else [])
    return compared(seconds) | {
        "precision": Table(work / f"{_WITH}.parquet").record.precision,
        "table_bytes_a_photo": bytes_a_row(work / f"{_WITH}.parquet"),
        "embeddings_bytes_a_photo": bytes_a_row(work / "embeddings"),
    }


def measure_another(
    photos: Path, work: Path, model: Path, n_rows: int, n_new: int, rounds: int
) -> dict[str, Any]:
    """Add photos to a large table, as often as there are rounds, and one more before them."""
    work.mkdir()
    tree = make_tree(work / "tree", n_rows)
    for name in (_WITHOUT, _WITH):
        settings = Settings(paths=(tree,), out=work / f"{name}.parquet", model=str(model))
        if name == _WITH:
            settings = replace(settings, embeddings=work / "embeddings")
        # In a process of its own, so that its memory is not this one's.
        job = get_context("spawn").Process(target=label_without_model, args=(settings,))
        job.start()
        job.join()
        assert job.exitcode == 0
    files = sorted(photos.iterdir())
    seconds: dict[str, list[float]] = {_WITHOUT: [], _WITH: []}
    for round_ in range(rounds + 1):
        below = tree / f"night-{round_}"
        below.mkdir()
        for place in range(n_new):
            file = files[(round_ * n_new + place) % len(files)]
            shutil.copy(file, below / f"{place:06}{file.suffix}")
        for name, times in seconds.items():
            taken = measure(command(tree, work, model, name))["seconds"]
            times.extend([taken] if round_ else [])
    return compared(seconds)


def bytes_a_row(place: Path) -> int:
    """What a row takes of a file, or of the files in a folder, compressed."""
    total = n_rows = 0
    for file in place.iterdir() if place.is_dir() else [place]:
        metadata = pq.read_metadata(file)
        n_rows += metadata.num_rows
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            total += sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return round(total / n_rows)


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    pairs = list(zip(seconds[_WITHOUT], seconds[_WITH], strict=True))
    by_round = [round(beside / without, 3) for without, beside in pairs]
    return {
        "median_s": {name: round(statistics.median(times), 2) for name, times in seconds.items()},
        "spread_s": {name: [min(times), max(times)] for name, times in seconds.items()},
        "ratio": round(statistics.median(by_round), 3),
        "by_round": by_round,
        "more_s": round(statistics.median(beside - without for without, beside in pairs), 2),
    }


def cpu() -> dict[str, Any]:
    """The cores, and what PyTorch sees that they can do."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    flags = sorted(name for name, value in capabilities.items() if value is True)
    return {"cores": os.cpu_count(), "machine": platform.machine(), "cpu_flags": flags}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = make_photos(arguments.source, "large", arguments.images, work)
        model = make_model(work / "model")
        for what, measured in (
            ("first night", lambda: measure_first(photos, work / "first", model, arguments.rounds)),
            (
                "another night",
                lambda: measure_another(
                    photos,
                    work / "another",
                    model,
                    arguments.rows,
                    arguments.new,
                    arguments.rounds,
                ),
            ),
        ):
            results[what] = measured()
            print(f"{what:<14} {results[what]}", flush=True)
    asked = {name: getattr(arguments, name) for name in ("images", "rows", "new", "rounds")}
    print(json.dumps({"benchmark": "embeddings", **asked, **cpu(), **results}))


if __name__ == "__main__":
    main()
