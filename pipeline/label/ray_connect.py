"""Connecting to a Ray cluster."""

import logging
import signal
from typing import Any

from pipeline.errors import UsageError


def connect(address: str | None) -> Any:
    """Return Ray, connected; without an address to a cluster that is started on this machine.

    Raises UsageError where Ray is not installed or the cluster not reached.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'label-images[ray]'") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address, include_dashboard=None if address else False, logging_level=logging.WARNING
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster is reached at {address}: {error}; leave --ray-address out to start "
            f"one on this machine"
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without a word
    return ray
