"""What a process on a node of a Ray cluster does: the same as the machine of a local run, on a
driver's orders.

Ray gives a process one task after another, so the model is loaded once.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.job import Job
from jobs.manifest import ModelIdentity
from jobs.storage.object_store import AnyPath
from pipeline.console import Console, shown
from pipeline.errors import LabelImagesError
from pipeline.settings import Settings

from .labeller import Labelled, Run
from .local import Machine
from .placement import choose_device, choose_placement, workers_for
from .predictions import Predictions
from .stages import Stages


def load(settings: Settings) -> tuple[ModelIdentity, Labelled]:
    """Load the model; return its identity, and what labelling nothing takes."""
    placement = choose_placement(replace(settings, device="cpu"), 0)
    return _machine(settings).identity, Labelled(Stages(), placement.to_record())


def label(
    out: AnyPath, settings: Settings, shards: Sequence[int], cpus: int, run_id: str
) -> Labelled:
    """Label those of some shards that are not done, with the receipts of all."""
    run = _run(out, settings, cpus, run_id)
    left = [shard for shard in shards if run.job.proven(run.manifest, shard) is None]
    with shown(quiet=True):  # warnings, which Ray hands to the driver's user
        labelled = _machine(settings).label(run, left)
    receipts = [receipt for shard in shards if (receipt := run.job.proven(run.manifest, shard))]
    return replace(labelled, receipts=receipts)


def score(settings: Settings, features: NDArray[np.float32]) -> Predictions:
    """Score features that were kept (labeller.py)."""
    return _machine(settings).score(settings, features)


def label_again(out: AnyPath, settings: Settings, n: int, cpus: int) -> dict[str, float]:
    """Label some committed rows again (labeller.py)."""
    return _machine(settings).label_again(_run(out, settings, cpus, ""), n)


def _run(out: AnyPath, settings: Settings, cpus: int, run_id: str) -> Run:
    """The driver's run, as this node sees it."""
    job = Job(out)
    manifest = job.manifest
    if manifest is None or not job.has_plan:
        raise LabelImagesError(
            f"{job.folder} is not to be seen on a node; --out must be on a disk that all nodes "
            "share"
        )
    torch.set_num_threads(cpus)
    identity = _machine(settings).identity
    if identity.fingerprint != manifest.fingerprint:
        raise LabelImagesError(
            f"the model {settings.model} is another one on this node than on the one that was "
            "asked first"
        )
    workers = settings.workers
    if workers is None:
        device, _ = choose_device(settings.device)
        workers = workers_for(device, cpus)
    return Run(job, manifest, identity, replace(settings, workers=workers), Console(), run_id)


def _machine(settings: Settings) -> Machine:
    """A machine with the model, kept by those settings alone that decide which model it is."""
    return _loaded(
        Settings(
            model=settings.model,
            labels=settings.labels,
            arch=settings.arch,
            preprocess=settings.preprocess,
            templates=settings.templates,
            activation=settings.activation,
            top_k=settings.top_k,
        )
    )


@functools.lru_cache(maxsize=1)
def _loaded(settings: Settings) -> Machine:
    return Machine(settings)
