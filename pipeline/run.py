"""The run, in the order of the README's sentence: plan -> load -> predict -> write -> commit -> merge."""

import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from jobs.job import Job
from jobs.manifest import Manifest
from vit.classifier import Classifier

from . import prepare
from .engine import Engine, choose_engine
from .loader import BatchDataset, ShardBatchSampler, load_batches
from .names import display
from .parquet import Rows, write_merged, write_part
from .predict import Predictor
from .progress import Console, Progress
from .scan import read_list
from .settings import Settings


@dataclass
class Stages:
    """Seconds spent in each stage; decoding counts the workers' time, the others this process's."""

    images: int = 0
    decode_s: float = 0.0
    wait_s: float = 0.0  # for a batch: what decoding could not hide
    model_s: float = 0.0
    write_s: float = 0.0

    def rates(self, workers: int) -> dict[str, float]:
        """Images a second each stage could do alone."""
        seconds = {"decode": self.decode_s / max(workers, 1), "model": self.model_s, "write": self.write_s}
        return {stage: round(self.images / spent, 1) for stage, spent in seconds.items() if spent and self.images}


@dataclass
class Outcome:
    """What a run did; `errors` are the failed rows of the whole table, by code."""

    counts: dict[str, int]
    labelled: int
    errors: dict[str, int]
    seconds: float
    stages: Stages
    rates: dict[str, float]
    changed: bool = True
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


def run(settings: Settings, console: Console) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos, and return what was done."""
    assert settings.out is not None
    started = time.monotonic()
    job = Job(settings.out)
    record = prepare.table_record(settings.out, settings.overwrite)
    listed = read_list(settings.files_from)
    with job.held():
        classifier = prepare.load_model(settings)
        fingerprint = prepare.fingerprint_of(classifier, settings.top_k)
        console.info("model", f"model: {classifier.name}, {len(classifier.labels)} classes")
        selection = prepare.selection_of(settings, listed)
        manifest, obstacles = prepare.find_unfinished(job, record, fingerprint, selection)
        if obstacles:
            console.warn("replan", f"the unfinished job cannot go on: {', '.join(obstacles)}; planning again")
        if manifest is None or settings.restart:
            comparison = prepare.compare(settings, listed, record, fingerprint)
            announce(comparison, console)
            if record and comparison.base_counts and comparison.plan.changes_nothing:
                job.finish()
                errors = comparison.base_counts["errors"]
                return Outcome(comparison.plan.counts, 0, errors, time.monotonic() - started, Stages(), {}, False)
            manifest = prepare.make_manifest(comparison, settings, selection, classifier, fingerprint)
            job.freeze(manifest, comparison.plan)
        receipts = job.receipts(manifest)
        if receipts:
            done = sum(receipt.rows for receipt in receipts.values())
            console.info("resume", f"going on: {done:,} of {manifest.n_images:,} images are done already")
        engine = choose_engine(
            settings.device, settings.precision, settings.compile, settings.batch_size, settings.workers,
            manifest.n_images,
        )  # fmt: skip
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        shards = [shard for shard in range(manifest.n_shards) if shard not in receipts]
        stages = Stages()
        if shards:
            console.info("engine", f"running on {engine.describe()}", {"reasons": engine.reasons})
            stages = label_shards(job, manifest, classifier, engine, settings, shards, run_id, console)
        errors = merge(job, manifest, classifier, engine, run_id)
        failed_now = sum(sum(receipt.errors.values()) for receipt in job.receipts(manifest).values())
        outcome = Outcome(
            manifest.counts, manifest.n_images - failed_now, errors, time.monotonic() - started, stages,
            stages.rates(engine.workers),
        )  # fmt: skip
        job.write_run(run_record(outcome, manifest, engine, run_id))
        job.finish()
        return outcome


def label_shards(
    job: Job,
    manifest: Manifest,
    classifier: Classifier,
    engine: Engine,
    settings: Settings,
    shards: Sequence[int],
    run_id: str,
    console: Console,
) -> Stages:
    """Label some shards of a frozen job; each leaves a part and a receipt.

    Needs only the manifest, the plan and the model: whoever has those can take shards of a job.
    """
    pending = job.pending()
    dataset = BatchDataset(pending, manifest.shard_size, classifier.preprocess, settings.max_pixels)
    sampler = ShardBatchSampler(manifest.n_images, manifest.shard_size, shards, engine.batch_size)
    batches = load_batches(dataset, sampler, engine.workers, pin_memory=engine.device.type == "cuda")
    predict = Predictor(classifier, engine, manifest.fingerprint.top_k)
    rows = Rows(pending, classifier, manifest.fingerprint.digest, run_id)
    open_shards: dict[int, list[pa.Table]] = {}
    stages = Stages()
    done = manifest.n_images - sum(manifest.shard_rows(shard) for shard in shards)
    with Progress(console, manifest.n_images, done) as progress:
        before = time.perf_counter()
        for batch in batches:
            arrived = time.perf_counter()
            predictions = predict(batch)
            predicted = time.perf_counter()
            shard_rows = open_shards.setdefault(batch.shard, [])
            shard_rows.append(rows.make(batch, predictions, datetime.now(UTC)))
            if sum(map(len, shard_rows)) == manifest.shard_rows(batch.shard):
                commit_shard(job, manifest, batch.shard, pa.concat_tables(open_shards.pop(batch.shard)), run_id)
            stages.images += len(batch)
            stages.decode_s += batch.decode_s
            stages.wait_s += arrived - before
            stages.model_s += predicted - arrived
            before = time.perf_counter()
            stages.write_s += before - predicted
            progress.advance(len(batch), len(batch) - int(predictions.is_finite.sum()))
    assert not open_shards, "a shard was left unfinished"
    return stages


def commit_shard(job: Job, manifest: Manifest, shard: int, rows: pa.Table, run_id: str) -> None:
    errors: dict[str, int] = {}
    with job.commit(manifest, shard, errors, run_id) as part:
        errors |= write_part(part, rows)


def merge(job: Job, manifest: Manifest, classifier: Classifier, engine: Engine, run_id: str) -> dict[str, int]:
    """Make the table of carried-over rows and parts; return its failed rows by error code."""
    positions = job.pending()["position"].to_numpy()
    classes = [{"class_id": class_id, "label": label} for class_id, label in enumerate(classifier.labels)]
    for entry, id_ in zip(classes, classifier.label_ids, strict=False):
        entry["id"] = id_
    record = {
        "plan_id": manifest.plan_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": run_id,
        "tool_version": version("label-images"),
        "model": classifier.name,
        "fingerprint": manifest.fingerprint.digest,
        "fingerprint_fields": asdict(manifest.fingerprint),
        "precision": engine.precision,
        "device": str(engine.device),
        "roots": [display(root) for root in manifest.selection["roots"]],
        "libraries": library_versions(),
    }
    parts = [job.part_path(shard) for shard in range(manifest.n_shards)]
    base = job.out if manifest.base_table else None
    return write_merged(job.out, base, job.kept(), parts, positions, record, classes)


def announce(comparison: prepare.Comparison, console: Console) -> None:
    """Say what a comparison found, and what could not be looked at."""
    counts = comparison.plan.counts
    text = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "found")
    console.info("plan", text + (f" ({comparison.found.n_other:,} other files left out)" if comparison.found.n_other else ""),
                 {"counts": counts})  # fmt: skip
    if comparison.stale_because and counts["stale"]:
        console.warn("stale", f"labelling all again, since this changed: {', '.join(comparison.stale_because)}")
    for (root, folder), reason in comparison.found.unlisted.items():
        console.warn("unlisted", f"cannot look into {root}/{folder}: {reason}; rows the table has of it are kept")


def library_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "pillow", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def run_record(outcome: Outcome, manifest: Manifest, engine: Engine, run_id: str) -> dict[str, Any]:
    """What run.json keeps of a run."""
    return {
        "version": 1,
        "run_id": run_id,
        "plan_id": manifest.plan_id,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts | {"labelled": outcome.labelled, "failed": outcome.failed},
        "errors": outcome.errors,
        "stages": {name: round(value, 3) for name, value in asdict(outcome.stages).items()},
        "rates": outcome.rates,
        "slowest": min(outcome.rates, key=lambda stage: outcome.rates[stage], default=None),
        "engine": {"device": str(engine.device), "precision": engine.precision, "compile": engine.compile,
                   "batch_size": engine.batch_size, "workers": engine.workers, "reasons": engine.reasons},
        "settings": manifest.settings,
        "libraries": library_versions(),
    }  # fmt: skip
