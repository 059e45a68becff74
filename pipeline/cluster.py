"""The Ray engine: the shards of a frozen job, labelled on the nodes of a Ray cluster.

driver    plans, freezes, hands out shards and merges, all as without Ray
task      labels a few shards with the very function the local run uses (run.label_shards), and
          leaves their parts and receipts; the model stays loaded in its process
Ray       places tasks where CPUs and GPUs are free, on new nodes too, and repeats what a dead
          process or node had: shards with a receipt are not done again

Why tasks: actors and Ray Data label as fast (within a tenth; benchmarks/ray_ways.py), but do worse when
one of two nodes dies: 600 photos take tasks 34 s then, and Ray Data 48 s. Actors never finish: one that lost
its node waits for another, and with it all it was given, while a repeated task goes wherever there is room.

All nodes must see the photos, the model and --out at the same paths.
"""

import functools
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from jobs.job import Job
from jobs.receipts import Receipt, read_receipt
from vit.classifier import Classifier

from .connect import connect, wait_until_warm
from .engine import Engine, choose_engine
from .errors import LabelImagesError, time_is_up
from .prepare import fingerprint_of, load_model
from .progress import Console, Progress
from .report import Stages
from .run import Run, label_shards
from .settings import Settings

_SHARDS_A_TASK = 32  # at most: nodes that join later find work left
_LOOK_EVERY_S = 1.0
_COUNT_EVERY_S, _COUNT_AT_MOST = 5.0, 64  # tasks that are looked at while they work


@dataclass(frozen=True)
class Share:
    """What one task takes of a node."""

    cpus: int
    gpus: int
    n: int  # how many of it the cluster has now


@dataclass(frozen=True)
class Labelled:
    """What a task did."""

    receipts: list[Receipt]
    stages: Stages
    engine: Engine


def label_shards_on_ray(run: Run, shards: Sequence[int]) -> tuple[Engine, Stages]:
    """Label shards of a frozen job on a Ray cluster; return how the nodes ran, and their stages together.

    Raises UsageError where Ray is not installed or not reached, TimeIsUp, and what a node ran into.
    """
    ray = connect(run.settings)
    try:
        return _hand_out(ray, run, shards)
    finally:
        ray.shutdown()  # ends the tasks that are still at work


def _hand_out(ray: Any, run: Run, shards: Sequence[int]) -> tuple[Engine, Stages]:
    share = _share(ray.nodes())
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=-1, max_calls=0)(_label)
    waiting = deque(shards)
    console, manifest = run.console, run.manifest
    console.info(
        "ray",
        f"Ray: {share.n} tasks at a time, each with {share.cpus} CPUs" + (f" and {share.gpus} GPU" * bool(share.gpus)),
    )
    engine, stages = run.engine, Stages()
    running: dict[Any, list[int]] = {}  # the shards of each task
    wait_until_warm(ray)
    with Progress(console, manifest.n_images, manifest.n_images - sum(map(manifest.shard_rows, shards))) as progress:
        counter = _Counter(run, progress)
        while waiting or running:
            # Twice as many as there is room for: Ray starts the next at once, and an autoscaler sees the demand.
            n = _share(ray.nodes()).n
            while waiting and len(running) < 2 * n:
                given = _next_task(waiting, n)
                running[task.remote(run.job.out, run.settings, given, share.cpus, run.id)] = given
            finished, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
            for reference in finished:
                del running[reference]
                try:
                    labelled: Labelled = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                engine = labelled.engine
                stages += labelled.stages
                counter.count(labelled.receipts)
            counter.look_at(running.values())
            if time.monotonic() > run.deadline and (waiting or running):
                raise time_is_up(progress.done, manifest.n_images)
    stages.at_once = share.n
    return replace(engine, workers=engine.workers * share.n), stages


def _next_task(waiting: deque[int], n: int) -> list[int]:
    """Take the shards of the next task for one of `n` places: fewer and fewer, so that all places finish together."""
    size = min(max(1, len(waiting) // (2 * n)), _SHARDS_A_TASK)
    return [waiting.popleft() for _ in range(size)]


class _Counter:
    """Counts finished shards, also those of tasks that are still at work: a task may take long."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.counted: set[int] = set()
        self.looked = time.monotonic()

    def count(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            if receipt.shard not in self.counted:
                self.counted.add(receipt.shard)
                self.progress.advance(receipt.rows, sum(receipt.errors.values()))

    def look_at(self, tasks: Iterable[list[int]]) -> None:
        """Now and then: which shards are done of some tasks, which take theirs more or less in order."""
        if time.monotonic() - self.looked < _COUNT_EVERY_S:
            return
        self.looked = time.monotonic()
        for shards in islice(tasks, _COUNT_AT_MOST):
            for shard in shards:
                if shard in self.counted:
                    continue
                receipt = read_receipt(self.run.job.receipt_path(shard))
                if receipt is None or receipt.plan_id != self.run.manifest.plan_id:
                    break
                self.count([receipt])


def _share(nodes: Sequence[dict[str, Any]]) -> Share:
    """Cut a cluster into equal shares: a GPU with its part of the CPUs, or a node where there is no GPU."""
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [resources for resources in alive if resources.get("GPU")]
    if with_gpu:
        cpus = min(int(resources["CPU"] // resources["GPU"]) for resources in with_gpu)
        return Share(max(cpus, 1), 1, sum(int(resources["GPU"]) for resources in with_gpu))
    if not alive:
        return Share(1, 0, 1)
    cpus = max(min(int(resources["CPU"]) for resources in alive), 1)
    return Share(cpus, 0, sum(int(resources["CPU"]) // cpus for resources in alive))


def _label(out: Any, settings: Settings, shards: list[int], cpus: int, run_id: str) -> Labelled:
    """On a node: label those of some shards that are not done, and return all their receipts."""
    job = Job(out)
    manifest = job.manifest
    if manifest is None or not job.has_plan:
        raise LabelImagesError(
            f"{job.folder} is not to be seen on a node; --out must be on a disk that all nodes share"
        )
    torch.set_num_threads(cpus)
    classifier, digest = load(settings)
    if digest != manifest.fingerprint.digest:
        raise LabelImagesError(f"the model {settings.model} is another one on a node than where the run was started")
    on_gpu = torch.cuda.is_available() and settings.device != "cpu"
    workers = settings.workers if settings.workers is not None else max(1, cpus - 1 if on_gpu else cpus)
    engine = choose_engine(replace(settings, workers=workers), manifest.n_images)
    left = [shard for shard in shards if job.proven(manifest, shard) is None]
    run = Run(job, manifest, classifier, engine, settings, Console(quiet=True), run_id)
    stages = label_shards(run, left) if left else Stages()
    receipts = [receipt for shard in shards if (receipt := job.proven(manifest, shard))]
    return Labelled(receipts, stages, engine)


@functools.lru_cache(maxsize=1)
def load(settings: Settings) -> tuple[Classifier, str]:
    """The model, once a process: Ray gives a process one task after another."""
    classifier = load_model(settings, Console(quiet=True))
    return classifier, fingerprint_of(classifier, settings.top_k).digest
