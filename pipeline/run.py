"""The run, in the order of the README's sentence: plan -> load -> predict -> write -> commit -> merge."""

import math
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.receipts import count_failures, sha256_file
from vit.classifier import Classifier

from .audit import audit
from .batch import Batch, BatchDataset
from .checks import check_paths
from .dataset import write_dataset
from .engine import Engine, choose_device, choose_engine
from .errors import time_is_up
from .loader import ShardBatchSampler, load_batches
from .merge import Merge, Parts, write_merged
from .names import display
from .predict import Predictions, Predictor, Running
from .prepare import load_model, prepare_job, read_table
from .progress import Console, Progress
from .report import Outcome, Stages, library_versions, now_text, run_record, timed
from .rows import Rows
from .settings import Settings
from .tables import read_index
from .writer import ShardWriter


@dataclass(frozen=True)
class Run:
    """One run of a frozen job: all that labelling its shards takes.

    `deadline` is in time.monotonic()'s seconds.
    """

    job: Job
    manifest: Manifest
    classifier: Classifier
    engine: Engine
    settings: Settings
    console: Console
    id: str
    deadline: float = math.inf


def run(settings: Settings, console: Console) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos, and return what was done."""
    deadline = time.monotonic() + (math.inf if settings.max_runtime is None else settings.max_runtime)
    # What cannot work is refused before anything is made beside the table.
    check_paths(settings)
    read_table(settings)
    on_ray = settings.engine == "ray"
    if not on_ray:
        choose_device(settings.device)
    classifier = load_model(settings, console)
    started = time.perf_counter()
    job = Job(settings.table)
    with job.held() as is_alone:
        if not is_alone:
            console.warn(
                "no_lock",
                f"nothing keeps another run off {job.out}: this store, or this installation, has no conditional "
                "writes (for S3 install label-images[s3]); see to it that no two run at once",
            )
        prepared = prepare_job(job, settings, classifier, console)
        if isinstance(prepared, Outcome):
            return prepared  # the table is up to date
        manifest, shards = prepared
        engine = choose_engine(replace(settings, device="cpu") if on_ray else settings, manifest.n_images)
        this = Run(job, manifest, classifier, engine, settings, console, new_run_id(), deadline)
        stages = Stages()
        if shards and on_ray:
            from .cluster import label_shards_on_ray

            engine, stages = label_shards_on_ray(this, shards)
            this = replace(this, engine=engine)
        elif shards:
            console.info("engine", f"running on {engine.describe()}", engine.to_record())
            stages = label_shards(this, shards)
        audited = audit(job, manifest, settings, console)
        errors = merge(this)
        outcome = Outcome(
            counts=manifest.counts,
            labelled=manifest.n_images - sum(count_failures(job.receipts(manifest).values()).values()),
            errors=errors,
            seconds=time.perf_counter() - started,
            stages=stages,
            rates=stages.rates(engine.workers),
        )
        proof: dict[str, Any] = {"audit": audited.to_record()}
        if not settings.is_dataset:
            proof["table_sha256"] = sha256_file(job.out)
        job.write_run(run_record(outcome, manifest, engine, this.id) | proof)
        job.finish(manifest.plan_id)
    return outcome


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def label_shards(run: Run, shards: Sequence[int]) -> Stages:
    """Label some shards of a frozen job; each leaves a part and a receipt.

    Raises TimeIsUp once the run's deadline is past; finished shards are kept.

    Needs only the manifest, the plan and the model: whoever has those can take shards of a job.
    """
    manifest, engine, console, settings = run.manifest, run.engine, run.console, run.settings
    pending = run.job.pending()
    dataset = BatchDataset(
        run.job.plan_copy(), manifest.shard_size, run.classifier.preprocess, settings.max_pixels, settings.image_column
    )
    sampler = ShardBatchSampler(manifest.n_images, manifest.shard_size, shards, engine.batch_size)
    batches = load_batches(
        dataset, sampler, engine.workers, console, settings.image_timeout, pin_memory=engine.device.type == "cuda"
    )
    predictor = Predictor(run.classifier, engine, manifest.fingerprint.top_k, console)
    rows = Rows(pending, run.classifier, manifest.fingerprint.digest, run.id)
    stages = Stages()
    done = manifest.n_images - sum(map(manifest.shard_rows, shards))
    with (
        Progress(console, manifest.n_images, done) as progress,
        ShardWriter(run.job, manifest, run.id) as writer,
    ):
        for batch, predictions in predict_batches(predictor, timed(batches, stages)):
            writer.add(batch.shard, rows.make(batch, predictions, datetime.now(UTC)))
            stages.add(batch, predictions)
            progress.advance(len(batch), len(batch) - int(predictions.is_finite.sum()))
            if time.monotonic() > run.deadline and progress.done < manifest.n_images:
                raise time_is_up(progress.done, manifest.n_images)
    stages.write_s = writer.write_s
    return stages


def predict_batches(predictor: Predictor, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Predictions]]:
    """Predict batches in order. A GPU always has the next one to work on while the results of one are used."""
    running: deque[tuple[Batch, Running]] = deque()
    for batch in batches:
        running.append((batch, predictor.start(batch)))
        if len(running) > predictor.engine.batches_ahead:
            batch, first = running.popleft()
            yield batch, first.finish()
    for batch, last in running:
        yield batch, last.finish()


def merge(run: Run) -> dict[str, int]:
    """Make the table of carried-over rows and parts; return its failed rows by error code."""
    job, manifest, classifier = run.job, run.manifest, run.classifier
    job.check_held()
    record = {
        "plan_id": manifest.plan_id,
        "created_at": now_text(),
        "run_id": run.id,
        "tool_version": version("label-images"),
        "model": classifier.name,
        "fingerprint": manifest.fingerprint.digest,
        "fingerprint_fields": asdict(manifest.fingerprint),
        "precision": run.engine.precision,
        "device": str(run.engine.device),
        "roots": [display(root) for root in manifest.selection["roots"]],
        "wanted": run.settings.wanted.to_record(),
        "libraries": library_versions(),
    }
    classes = [
        {"class_id": class_id, "label": label}
        | ({"id": classifier.label_ids[class_id]} if classifier.label_ids else {})
        for class_id, label in enumerate(classifier.labels)
    ]
    parts = Parts([job.part_path(shard) for shard in range(manifest.n_shards)], manifest.shard_size)
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    whole = Merge(kept, job.pending()["position"].to_numpy(), parts)
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, classes)
    return write_merged(job.out, base, whole, record, classes)
