"""Requests to a store are repeated where the reason they failed for may pass."""

import errno
import random
import re
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.2  # doubled each time, and never the same for all who wait
_TOKEN = re.compile(r"\??[^\s'\"<>/?]*\bsig=[^\s'\"<>]*")
_Result = TypeVar("_Result")


def persistent(request: Callable[..., _Result]) -> Callable[..., _Result]:
    """Repeat a request that fails for a reason that may pass."""

    def persist(*arguments: Any, **named: Any) -> _Result:
        for attempt in count(1):
            try:
                return request(*arguments, **named)
            except OSError as error:
                _hide_token(error)
                if attempt == _ATTEMPTS or is_final(error):
                    raise
                time.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1))
        raise AssertionError

    return persist


def _hide_token(error: OSError) -> None:
    """Azure's client for pyarrow.fs shows addresses with the token (SAS) that it asks with."""
    args = [_TOKEN.sub("", arg) if isinstance(arg, str) else arg for arg in error.args]
    error.args = tuple(args)
    if isinstance(error.strerror, str):
        error.strerror = _TOKEN.sub("", error.strerror)


def is_final(error: OSError) -> bool:
    """Whether asking again would give the same answer."""
    return (
        isinstance(error, FileNotFoundError | PermissionError)
        or error.errno == errno.ESTALE
        or is_denied(error)
        or "NO_SUCH" in str(error)
    )


def is_denied(error: OSError) -> bool:
    return (
        isinstance(error, PermissionError)
        or "ACCESS_DENIED" in str(error)
        or "HTTP status 403" in str(error)
    )
