"""How long it takes to label a table again from its embeddings: other class names, nothing decoded.

    python -m benchmarks.relabel 10000 100000

Makes so many files, a table of made-up labels and made-up embeddings of ViT-B/16's width, then runs
the command with other class names. Ends with one line of JSON.
"""

import json
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pipeline.settings import Settings
from vit.checkpoints.bundle import ModelSpec, write_bundle
from vit.config import ViTConfig
from vit.model import VisionTransformer
from vit.preprocess import Preprocess

from .measure import measure
from .scale import label_without_model, make_tree

_N_CLASSES = 1000


def main(sizes: list[int]) -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, words = make_model(work / "model"), work / "words.txt"
        words.write_text("".join(f"word {i}\n" for i in range(_N_CLASSES)))
        for n in sizes:
            results[f"{n:,} rows"] = measure_relabelling(n, work, model, words)
            print(f"{n:,} rows: {results[f'{n:,} rows']}", flush=True)
    print(json.dumps(results))


def make_model(folder: Path) -> Path:
    """A ViT-B/16 with random weights."""
    config = ViTConfig(img_size=224, n_classes=_N_CLASSES)
    names = tuple(f"class {i}" for i in range(_N_CLASSES))
    spec = ModelSpec(config, Preprocess(224, 248), names, (), 1.0, "random")
    with torch.device("cpu"):
        write_bundle(spec, VisionTransformer(config).state_dict(), folder)
    return folder


def measure_relabelling(n: int, work: Path, model: Path, words: Path) -> dict[str, Any]:
    photos, out, embeddings = (work / f"{name}-{n}" for name in ("photos", "table", "embeddings"))
    make_tree(photos, n)
    out = out.with_suffix(".parquet")
    settings = Settings(paths=(photos,), out=out, embeddings=embeddings, model=str(model))
    # In a process of its own, so that its memory is not this one's.
    job = get_context("spawn").Process(target=label_without_model, args=(settings,))
    job.start()
    job.join()
    assert job.exitcode == 0
    command = [sys.executable, "-m", "pipeline.cli", str(photos), "--out", str(out)]
    options = ["--embeddings", str(embeddings), "--model", str(model), "--labels", str(words)]
    return measure([*command, *options, "--quiet"])


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10_000, 100_000])
