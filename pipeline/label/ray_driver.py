"""A Ray cluster as a labeller: the shards of a frozen job, labelled on its nodes.

driver    plans, freezes, hands out shards and merges, all as without Ray; it needs no torch, and no model
task      labels a few shards as a local run does (ray_node.py), and leaves their parts and receipts; the model
          stays loaded in its process
Ray       places tasks where CPUs and GPUs are free, on new nodes too, and repeats what a dead
          process or node had: shards with a receipt are not done again

Why tasks: they label a little faster than actors and Ray Data (benchmarks/ray_ways.py), and lose
less when one of two nodes dies: 600 photos take tasks 37 s then, and Ray Data 47 s. Actors never
finish: one that lost its node waits for another, and with it all it was given, while a repeated
task goes wherever there is room.

All nodes must see the photos, the model and --out at the same paths.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.manifest import ModelIdentity
from jobs.plan import shard_size_for
from jobs.receipts import Receipt, read_receipt
from jobs.storage.object_store import AnyPath
from pipeline.console import Progress
from pipeline.errors import LabelImagesError, UsageError, time_is_up
from pipeline.garbage import no_collection
from pipeline.settings import Settings

from .labeller import Labelled, Run
from .predictions import Predictions
from .stages import Stages

_SHARDS_A_TASK = 32  # at most: nodes that join later find work left
_LOOK_EVERY_S = 1.0
_WARM_WITHIN_S = 60.0
_COUNT_EVERY_S, _COUNT_AT_MOST = 5.0, 64  # tasks that are looked at while they work


@contextmanager
def connected(settings: Settings) -> Iterator[Any]:
    """Connect to the settings' cluster.

    Raises UsageError where Ray is not installed or not reached.
    """
    ray = connect(settings.ray_address)
    try:
        yield ray
    finally:
        ray.shutdown()  # where no run came to close its labeller


class Cluster:
    """The labeller of a run with --engine ray. Raises what a node ran into."""

    def __init__(self, ray: Any, settings: Settings) -> None:
        self.ray, self.folder = ray, os.getcwd()
        self.warming = self._warm_up(settings)
        self.identity, self.nothing = self._first_of(
            self.warming
        )  # and what labelling nothing takes

    def _warm_up(self, settings: Settings) -> list[Any]:
        """Let a process on each node load the model: a task that comes to that node finds it
        loaded.

        It asks for processes only, not for CPUs, so that nothing here makes a cluster grow.
        """
        ray = self.ray
        task = ray.remote(num_cpus=0)(_load)
        nodes = [
            node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
        ]
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # Before an autoscaler has started any node, wherever Ray finds a place.
        somewhere = [task] if not nodes else []
        placed = [task.options(scheduling_strategy=affinity(node, soft=True)) for node in nodes]
        return [each.remote(self.folder, settings) for each in placed + somewhere]

    def _first_of(self, references: list[Any]) -> tuple[ModelIdentity, Labelled]:
        """What the first task returns that does not die."""
        while references:
            finished, references = self.ray.wait(references, num_returns=1)
            try:
                result: tuple[ModelIdentity, Labelled] = self._get(finished[0])
                return result
            except self.ray.exceptions.RayError as error:
                failure = error
        raise LabelImagesError(
            f"no node of the Ray cluster could load the model: {failure}"
        ) from failure

    def _get(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def load(self) -> bool:
        return True  # the nodes have it, before the driver knows its identity

    def shard_size(self, n_images: int) -> int:
        # Small ones: at the end all nodes wait for the one that has the last. But no smaller than a
        # batch.
        return shard_size_for(
            n_images, n_shards=1000, at_least=256 if _share(self.ray.nodes()).gpus else 32
        )

    def label(self, run: Run, shards: Sequence[int]) -> Labelled:
        """Hand out shards until all are done; return the stages of all nodes together."""
        if not shards:
            return self.nothing
        ray, console, manifest = self.ray, run.console, run.manifest
        share = _share(ray.nodes())
        task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=-1, max_calls=0)(
            _label
        )
        waiting = deque(shards)
        console.info(
            "ray",
            f"Ray: {share.n} tasks at a time, each with {share.cpus} CPUs"
            + (f" and {share.gpus} GPU" * bool(share.gpus)),
        )
        labelled, stages = self.nothing, Stages()
        running: dict[Any, list[int]] = {}  # the shards of each task
        # A task that comes before its process is warm gets one of its own, and begins anew.
        ray.wait(self.warming, num_returns=len(self.warming), timeout=_WARM_WITHIN_S)
        with Progress(
            console, manifest.n_images, manifest.n_images - sum(map(manifest.shard_rows, shards))
        ) as progress:
            counter = _Counter(run, progress)
            while waiting or running:
                # Twice as many as there is room for: Ray starts the next at once, and an autoscaler
                # sees the demand.
                n = _share(ray.nodes()).n
                while waiting and len(running) < 2 * n:
                    given = _next_task(waiting, n)
                    reference = task.remote(
                        self.folder, run.job.out, run.settings, given, share.cpus, run.id
                    )
                    running[reference] = given
                finished, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
                for reference in finished:
                    del running[reference]
                    labelled = self._get(reference)
                    stages += labelled.stages
                    counter.count(labelled.receipts)
                counter.look_at(running.values())
                if time.monotonic() > run.deadline and (waiting or running):
                    raise time_is_up(progress.done, manifest.n_images)
        stages.at_once = share.n
        placement = labelled.placement | {"workers": labelled.placement["workers"] * share.n}
        return Labelled(stages, placement, labelled.libraries)

    def label_again(self, run: Run, n: int) -> dict[str, float]:
        task = self.ray.remote(num_cpus=0)(_label_again)  # nothing else is at work any more
        return self._get(
            task.remote(self.folder, run.job.out, run.settings, n, _share(self.ray.nodes()).cpus)
        )

    def score(self, settings: Settings, features: NDArray[np.float32]) -> Predictions:
        task = self.ray.remote(num_cpus=0)(_score)
        predictions: Predictions = self._get(task.remote(self.folder, settings, features))
        return predictions

    def close(self) -> None:
        self.ray.shutdown()  # ends the tasks that are still at work


def _load(folder: str, settings: Settings) -> tuple[ModelIdentity, Labelled]:
    result: tuple[ModelIdentity, Labelled] = _node(folder).load(settings)
    return result


def _label(
    folder: str, out: AnyPath, settings: Settings, shards: list[int], cpus: int, run_id: str
) -> Labelled:
    labelled: Labelled = _node(folder).label(out, settings, shards, cpus, run_id)
    return labelled


def _label_again(
    folder: str, out: AnyPath, settings: Settings, n: int, cpus: int
) -> dict[str, float]:
    differences: dict[str, float] = _node(folder).label_again(out, settings, n, cpus)
    return differences


def _score(folder: str, settings: Settings, features: NDArray[np.float32]) -> Predictions:
    predictions: Predictions = _node(folder).score(settings, features)
    return predictions


def _node(folder: str) -> Any:
    """What nodes do, imported there: it takes torch, which the driver does without.

    It is done in the driver's working folder, which relative paths are meant from.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    with no_collection():
        from . import ray_node as node

    return node


@dataclass(frozen=True)
class Share:
    """What one task takes of a node."""

    cpus: int
    gpus: int
    n: int  # how many of it the cluster has now


def _next_task(waiting: deque[int], n: int) -> list[int]:
    """Take the shards of the next task for one of `n` places: fewer and fewer, so that all places
    finish together.
    """
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
        """Look now and then which shards of some tasks are done. A task takes its shards more or
        less in order.
        """
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
    """Cut a cluster into equal shares: a GPU with its part of the CPUs, or a node where there is no
    GPU.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [resources for resources in alive if resources.get("GPU")]
    if with_gpu:
        cpus = min(int(resources["CPU"] // resources["GPU"]) for resources in with_gpu)
        return Share(max(cpus, 1), 1, sum(int(resources["GPU"]) for resources in with_gpu))
    if not alive:
        return Share(1, 0, 1)
    cpus = max(min(int(resources["CPU"]) for resources in alive), 1)
    return Share(cpus, 0, sum(int(resources["CPU"]) // cpus for resources in alive))


def connect(address: str | None) -> Any:
    """Return Ray, connected; without an address, and without RAY_ADDRESS, to a cluster that is
    started on this machine. Not to any that happens to run here: it may be somebody else's.

    Raises UsageError where Ray is not installed or the cluster not reached.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'label-images[ray]'") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        is_ours = address == "local"
        ray.init(
            address,
            include_dashboard=False if is_ours else None,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster is reached at {address}: {error}; leave --ray-address out to start "
            "one on this machine"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without a word
    return ray
