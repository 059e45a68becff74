"""The audit: before a table appears, some of its new rows are labelled again on the plainest path.

One image after another, on the CPU, in fp32, decoded whole, with the model read anew: none of what
makes a run fast. A fault in any of that, or rows mixed up, shows as probabilities that differ.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.store import as_arrow
from vit.classifier import Classifier
from vit.preprocess import Preprocess, normalise

from .decode import decode_image
from .errors import AuditError
from .isolate import load_isolated
from .names import printable
from .parquet import SCHEMA
from .prepare import fingerprint_of, load_model
from .progress import Console
from .read import Source, Sources, read_image, stamp
from .samples import Failure, Sample
from .settings import Settings

AUDIT_ROWS = 16
AUDIT_SHARE = 50  # by default at most one image in so many, that an audit stays a small part of a run

# By how much a probability may differ, in one row and on average. Half precision and scaled decoding move single
# images that are torn between two classes (benchmarks/agreement.py); rows mixed up, or a broken kernel, move nearly
# all. The average of few rows may be farther off, that of one as far as the row.
EACH, MEAN = 0.5, 0.1


@dataclass(frozen=True)
class Audit:
    """How far each audited row was off, by path: the largest difference of a probability among its best classes."""

    differences: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.differences.values()))) if self.differences else 0.0

    @property
    def largest(self) -> float:
        return max(self.differences.values(), default=0.0)

    @property
    def off(self) -> dict[str, float]:
        """The rows beyond the bound; all, where the average is."""
        mean = MEAN + (EACH - MEAN) / max(len(self.differences), 1)
        return {path: gap for path, gap in self.differences.items() if gap > EACH or self.mean > mean}

    def to_record(self) -> dict[str, Any]:
        return {"rows": len(self.differences), "largest": round(self.largest, 6), "mean": round(self.mean, 6)}


def audit(job: Job, manifest: Manifest, settings: Settings, console: Console) -> Audit:
    """Label committed rows of a job again and compare. Raises AuditError where they disagree.

    The rows are random, but the same ones for the same job: running again changes no verdict.
    """
    result = Audit({})
    wanted = settings.audit
    if wanted is None:
        wanted = min(AUDIT_ROWS, -(-manifest.n_images // AUDIT_SHARE))
    if not wanted or not manifest.n_images:
        return result
    classifier = load_model(settings, Console(quiet=True))
    if fingerprint_of(classifier, settings.top_k) != manifest.fingerprint:
        raise AuditError("the model's files changed while the run was at work; run the same command again")
    sources = Sources(job.pending(), settings.image_column)
    rows: dict[int, dict[str, Any]] = {}
    for index, row in _committed(job, manifest, 4 * wanted):
        if len(rows) < wanted and row["status"] == "ok" and _is_unchanged(row, sources[index]):
            rows[index] = row
    load = PlainLoad({index: sources[index] for index in rows}, classifier.preprocess, settings.max_pixels)
    for sample in load_isolated(load, list(rows), settings.image_timeout):
        row = rows[sample.index]
        result.differences[f"{row['root']}/{row['path']}"] = _difference(row, sample, classifier)
    if result.off:
        raise AuditError(_complaint(result, job))
    console.info(
        "audit",
        f"audit: {len(result.differences)} rows labelled again, one by one in fp32: probabilities differ by "
        f"{result.largest:.4f} at most",
        result.to_record(),
    )
    return result


def _committed(job: Job, manifest: Manifest, n: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Random rows of the job's parts, with their index."""
    seed = int.from_bytes(hashlib.sha256(manifest.plan_id.encode()).digest()[:8])
    chosen = np.random.default_rng(seed).choice(manifest.n_images, min(n, manifest.n_images), replace=False)
    for index in chosen.tolist():
        shard, place = divmod(index, manifest.shard_size)
        # A part's rows are in index order. It is small, and seldom read twice.
        part = pq.read_table(as_arrow(job.part_path(shard)), schema=SCHEMA, partitioning=None)
        yield index, part.slice(place, 1).to_pylist()[0]


def _is_unchanged(row: dict[str, Any], source: Source) -> bool:
    """Whether the file still looks as it did when it was planned."""
    now = stamp(source)
    planned = int(row["mtime"].timestamp() * 1e6) if row["mtime"] else None
    return now is not None and now[1] == planned and (source.container or now[0] == row["size_bytes"])


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
    logits = classifier.model(normalise(sample.pixels[None], classifier.preprocess))
    plain: Tensor = classifier.probabilities(logits)[0]  # [K]
    written = {best["class_id"]: best["probability"] for best in row["top_k"]}
    least = min(written.values())
    best_now = int(plain.argmax())
    return max(abs(float(plain[class_id]) - written.get(class_id, least)) for class_id in {*written, best_now})


def _complaint(result: Audit, job: Job) -> str:
    shown = ", ".join(f"{printable(path)} by {gap:.2f}" for path, gap in list(result.off.items())[:10])
    return (
        f"audit: labelled again one by one in fp32, {len(result.off)} of {len(result.differences)} rows come out "
        f"otherwise ({shown}; {EACH} each and {MEAN} on average are allowed), so {job.out} is not written. Look at "
        "them; label all again with --restart and another --device or --precision fp32, or take the labels as they "
        "are with --audit 0"
    )
