"""Connecting to a Ray cluster, before this process imports torch: its nodes' processes do so meanwhile."""

import logging
import signal
from typing import Any

from .errors import UsageError
from .settings import Settings

_WARM_WITHIN_S = 60.0
_warming: list[Any] = []  # references of tasks


def connect(settings: Settings) -> Any:
    """Return Ray, connected; on each node a process begins to load the model. Raises UsageError where that cannot be.

    Only processes are asked for, no CPUs: nothing here makes a cluster grow.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'label-images[ray]'") from None
    if ray.is_initialized():
        return ray
    address, before = settings.ray_address, signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=None if address else False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster is reached at {address}: {error}; leave --ray-address out to start one "
                         "on this machine") from error  # fmt: skip
    signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without a word
    for node in nodes_at_work(ray):
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        task = ray.remote(num_cpus=0, max_retries=0)(_warm_up).options(scheduling_strategy=place)
        _warming.append(task.remote(settings))
    return ray


def wait_until_warm(ray: Any) -> None:
    """Wait for the processes that load the model: a task that comes too early gets one of its own, and begins anew."""
    if _warming:
        ray.wait(_warming, num_returns=len(_warming), timeout=_WARM_WITHIN_S)
        _warming.clear()


def nodes_at_work(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _warm_up(settings: Settings) -> None:
    """On a node: what each of its tasks needs first. A task that comes to this process finds it there."""
    from .cluster import load

    load(settings)
