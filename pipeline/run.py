"""The run: plan -> label -> audit -> merge. To label is load -> predict -> write -> commit (machine.py)."""

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs.job import Job
from jobs.receipts import count_failures, sha256_file

from .audit import audit
from .checks import check_paths
from .dataset import write_dataset
from .labeller import Labelled, Labeller, Run
from .merge import Merge, Parts, write_merged
from .names import display
from .prepare import prepare_job, read_table
from .processes import start_early
from .progress import Console
from .report import Outcome, now_text, run_record
from .settings import Settings
from .tables import read_index


def run(settings: Settings, console: Console) -> Outcome:
    """Bring the table at `settings.out` up to date with the photos, and return what was done."""
    deadline = math.inf if settings.max_runtime is None else time.monotonic() + settings.max_runtime
    # What cannot work is refused before anything is made beside the table.
    check_paths(settings)
    read_table(settings)
    with _labeller(settings) as labeller:
        identity = labeller.identity
        console.info("model", identity.describe())
        started = time.perf_counter()
        job = Job(settings.table)
        with job.held() as is_alone:
            if not is_alone:
                console.warn(
                    "no_lock",
                    f"nothing keeps another run off {job.out}: this store, or this installation, has no conditional "
                    "writes (for S3 install label-images[s3]); see to it that no two run at once",
                )
            prepared = prepare_job(job, settings, labeller, console)
            if isinstance(prepared, Outcome):
                return prepared  # the table is up to date
            manifest, shards = prepared
            this = Run(job, manifest, identity, settings, console, new_run_id(), deadline)
            labelled = labeller.label(this, shards)
            audited = audit(this, labeller)
            errors = merge(this, labelled)
            outcome = Outcome(
                counts=manifest.counts,
                labelled=manifest.n_images - sum(count_failures(job.receipts(manifest).values()).values()),
                errors=errors,
                seconds=time.perf_counter() - started,
                stages=labelled.stages,
                rates=labelled.stages.rates(labelled.engine["workers"]),
            )
            proof: dict[str, Any] = {"audit": audited.to_record()}
            if not settings.is_dataset:
                proof["table_sha256"] = sha256_file(job.out)
            job.write_run(run_record(outcome, manifest, labelled.engine, labelled.libraries, this.id) | proof)
            job.finish(manifest.plan_id)
    return outcome


@contextmanager
def _labeller(settings: Settings) -> Iterator[Labeller]:
    """Whoever the settings choose to label, ready. Only what it needs is imported."""
    if settings.engine == "ray":
        from .cluster import ray_cluster

        with ray_cluster(settings) as cluster:
            yield cluster
        return
    start_early(settings)
    from .engine import choose_device
    from .machine import Machine

    choose_device(settings.device)  # refused before the model is loaded
    yield Machine(settings)


def new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def merge(run: Run, labelled: Labelled) -> dict[str, int]:
    """Make the table of carried-over rows and parts; return its failed rows by error code."""
    job, manifest = run.job, run.manifest
    job.check_held()
    record = {
        "plan_id": manifest.plan_id,
        "created_at": now_text(),
        "run_id": run.id,
        "tool_version": version("label-images"),
        "model": run.identity.name,
        "fingerprint": manifest.fingerprint.digest,
        "fingerprint_fields": asdict(manifest.fingerprint),
        "precision": labelled.engine["precision"],
        "device": labelled.engine["device"],
        "roots": [display(root) for root in manifest.selection["roots"]],
        "wanted": run.settings.wanted.to_record(),
        "libraries": labelled.libraries,
    }
    parts = Parts([job.part_path(shard) for shard in range(manifest.n_shards)], manifest.shard_size)
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    whole = Merge(kept, job.pending()["position"].to_numpy(), parts)
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, run.identity.classes())
    return write_merged(job.out, base, whole, record, run.identity.classes())
