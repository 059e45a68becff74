"""The plainest path, for the audit: one image after another, on the CPU, in fp32, decoded whole. It
uses nothing of what makes a run fast.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.storage.arrow import read_parquet
from pipeline.failures import AWAY, Failure
from pipeline.find.source import Source, Sources
from pipeline.load.decode import decode_image
from pipeline.load.isolation import isolated
from pipeline.load.read import read_image, stamp
from pipeline.load.sample import Sample
from pipeline.settings import Settings
from vit.classifier import Classifier
from vit.preprocess import Preprocess, normalise


def label_again(
    job: Job,
    manifest: Manifest,
    settings: Settings,
    preprocess: Preprocess,
    load_anew: Callable[[], Classifier],
    n: int,
) -> dict[str, float]:
    """Label about `n` committed rows of a job again; return how far off each is, by path
    (labeller.py).

    Decoding begins, with the preprocessing of the job's model, while that model is loaded anew.

    The rows are random, but the same ones for the same job: running again changes no verdict.
    Photos that changed since they were planned, or cannot be read any more, are left out: what they
    would say is of the disk, and not of the run.
    """
    sources = Sources(job.pending(), settings.image_column, settings.paths)
    rows: dict[int, dict[str, Any]] = {}
    for index, row in _committed(job, manifest, 4 * n):
        if len(rows) < n and row["status"] == "ok" and _is_unchanged(row, sources[index]):
            rows[index] = row
    load = PlainLoad({index: sources[index] for index in rows}, preprocess, settings.max_pixels)
    differences = {}
    with isolated(load, list(rows), settings.image_timeout) as samples:
        classifier = load_anew()
        assert classifier.preprocess == preprocess
        for sample in samples:
            if isinstance(sample, Failure) and sample.code in (*AWAY, "timeout"):
                continue
            row = rows[sample.index]
            differences[f"{row['root']}/{row['path']}"] = _difference(row, sample, classifier)
    return differences


def _committed(job: Job, manifest: Manifest, n: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Random rows of the job's parts, with their index."""
    seed = int.from_bytes(hashlib.sha256(manifest.plan_id.encode()).digest()[:8])
    chosen = np.random.default_rng(seed).choice(
        manifest.n_images, min(n, manifest.n_images), replace=False
    )
    for index in chosen.tolist():
        shard, place = divmod(index, manifest.shard_size)
        # A part's rows are in index order. It is small, and seldom read twice.
        part = read_parquet(job.part_path(shard))
        yield index, part.slice(place, 1).to_pylist()[0]


def _is_unchanged(row: dict[str, Any], source: Source) -> bool:
    """Whether the file still looks as it did when it was planned.

    An archive that grew was later changed than an earlier image of it says: then the bytes tell.
    """
    now = stamp(source)
    if now is None:
        return False
    if now[1] == (int(row["mtime"].timestamp() * 1e6) if row["mtime"] else None):
        return source.container or now[0] == row["size_bytes"]
    if not source.container or row["content_hash"] is None:
        return False
    data = read_image(0, source)
    return isinstance(data, bytes) and xxh3_128_hexdigest(data) == row["content_hash"]


@dataclass(frozen=True)
class PlainLoad:
    """Reads and decodes whole, one image after another."""

    sources: dict[int, Source]
    preprocess: Preprocess
    max_pixels: int

    def __call__(self, index: int) -> Sample | Failure:
        data = read_image(index, self.sources[index])
        if isinstance(data, Failure):
            return data
        return decode_image(index, data, self.preprocess, self.max_pixels, scaled=False)


@torch.inference_mode()
def _difference(row: dict[str, Any], sample: Sample | Failure, classifier: Classifier) -> float:
    """The largest difference of a probability, over the row's best classes and the best one now."""
    if isinstance(sample, Failure):
        return 1.0  # it had a label
    features = classifier.backbone(normalise(sample.pixels[None], classifier.preprocess))  # [1, F]
    plain: Tensor = classifier.scores(features)[0]  # [K]
    written = {best["class_id"]: best["probability"] for best in row["top_k"]}
    least = min(written.values())
    best_now = int(plain.argmax())
    return max(
        abs(float(plain[class_id]) - written.get(class_id, least))
        for class_id in {*written, best_now}
    )
