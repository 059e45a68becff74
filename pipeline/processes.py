"""How processes that read and decode are started."""

import multiprocessing
from typing import Any

from jobs.store import start_method


def worker_context() -> Any:
    """The multiprocessing context: a fork of this process, or of a server that has imported what workers need.

    A fork is there at once. But a process that uses an object store may not be forked, and one started anew
    would spend seconds on importing torch.
    """
    context = multiprocessing.get_context(start_method())
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["pipeline.loader"])
    return context
