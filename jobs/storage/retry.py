"""Requests to a store are repeated where the reason they failed for may pass."""

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.2  # doubled each time, and never the same for all who wait
_Result = TypeVar("_Result")


def persistent(request: Callable[..., _Result]) -> Callable[..., _Result]:
    """Repeat a request that fails for a reason that may pass."""

    def persist(*arguments: Any, **named: Any) -> _Result:
        for attempt in range(1, _ATTEMPTS):
            try:
                return request(*arguments, **named)
            except OSError as error:
                if is_final(error):
                    raise
                time.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1))
        return request(*arguments, **named)

    return persist


def is_final(error: OSError) -> bool:
    """Whether asking again would give the same answer."""
    return (
        isinstance(error, FileNotFoundError | PermissionError)
        or is_denied(error)
        or "NO_SUCH" in str(error)
    )


def is_denied(error: OSError) -> bool:
    return (
        isinstance(error, PermissionError)
        or "ACCESS_DENIED" in str(error)
        or "HTTP status 403" in str(error)
    )
