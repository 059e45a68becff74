"""How processes that read and decode are started."""

import multiprocessing
import os
import threading
from multiprocessing import forkserver
from typing import Any

from jobs.storage.object_store import StorePath, start_method
from pipeline.settings import Settings

# By name, as the server imports it: it says nothing where it cannot, and all goes on slowly.
PRELOAD = ["pipeline.load.preload"]


def worker_context() -> Any:
    """The multiprocessing context: a fork of this process, or of a server that has imported what
    workers need.

    A fork is there at once. But a process that uses an object store may not be forked, and one
    started anew would spend seconds on importing torch.
    """
    method = start_method()
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(PRELOAD)
    return multiprocessing.get_context(method)


def start_early(settings: Settings) -> None:
    """Start the server, where a run will need one, so that it imports torch while this process
    does.
    """
    if any(isinstance(place, StorePath) for place in (*settings.paths, settings.out)):
        multiprocessing.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()


def end_with_main_process() -> None:
    """In a worker: end as soon as the process that started it has ended, whatever ended that."""
    threading.Thread(target=_wait_for_main_process, daemon=True).start()


def _wait_for_main_process() -> None:
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)
