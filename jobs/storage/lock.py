"""The kernel lock that keeps two runs off one job.

The lock is flock's (through filelock): it ends with the process that holds it, however that ends,
so a dead holder blocks nobody and there is nothing to clean up.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from jobs.errors import JobLocked

from .atomic import read_json, write_json


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the job in `folder` for as long as the context lasts.

    Raises JobLocked, naming the holder, when another process has it.
    """
    lock = FileLock(folder / "lock")
    holder = folder / "holder.json"  # apart from the lock file, which every contender truncates
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(holder) or {}
        raise JobLocked(
            f"another run is at work on this table: process {who.get('pid', '(unknown)')} on "
            f"{who.get('host', 'some host')}, since {who.get('since', 'some time ago')}; wait for "
            "it, or stop it"
        ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()
