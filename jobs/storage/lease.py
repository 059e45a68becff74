"""The lease that keeps two runs off one job in an object store, where there is no kernel to lock
files.

A run puts lease.json on the condition that there is none, renews it while it works and removes it
at its end; each put is on the condition that the object is still the one this run put
(conditional.py). A lease that was not renewed for LEASE_S is nobody's, nor is that of a dead
process of this machine. S3 and Azure have such conditions, if their clients are installed.

A request whose answer is lost is sent again, and then refused, for the lease that the first one
put. So whatever a store refuses, the lease is read back: by its nonce a run knows its own.

No two machines' clocks are compared. How old a lease is the store says, by its own clock: when it
was put, and what the time is now. How long this run may still count on its lease, a clock says that
nobody sets.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.errors import JobError, JobLocked

from .conditional import Conditional, Found, conditional
from .object_store import StorePath

LEASE_S = 60.0
_RENEW_EVERY_S = LEASE_S / 4
# A store tells times in whole seconds, and its machines may differ by a little.
_STORE_DIFFERS_S = 5.0
# It goes on while a machine sleeps, unlike the monotonic clock of Linux.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """A held lease. `check` before anything is written that another run must not find changed."""

    def __init__(self, stored: Conditional, place: StorePath) -> None:
        self.stored, self.place = stored, place
        self.since = time.time()
        self._nonce = secrets.token_hex(16)
        self._tag: str | None = None  # of the object as this run put it
        self._until = 0.0  # by _now()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Raises JobLocked, naming the holder, when another run has it."""
        if not self._put(None):
            holder, found = self._read()
            if found is None:
                if not self._put(None):
                    raise JobLocked(
                        "another run has just begun with this table; wait for it, or stop it"
                    )
            elif not self._is_free(holder, found) or not self._put(found.tag):
                raise JobLocked(
                    "another run is at work on this table: process "
                    f"{holder.get('pid', '(unknown)')} on {holder.get('host', 'some host')}, "
                    f"since {holder.get('since', 'some time ago')}; wait for it, or stop it"
                )
        self._renewer.start()

    def check(self) -> None:
        """Raises JobError where the lease was lost: another run may be at work by now."""
        if self._tag is None or _now() > self._until:
            raise JobError(
                f"{self.place} could not be renewed for {LEASE_S:.0f} s or was taken by another "
                "run; nothing more is written. The same command goes on"
            )

    def release(self) -> None:
        self._ended.set()
        self._renewer.join()
        if self._tag is None or _now() >= self._until:
            return  # another's, or anybody's by now
        holder, found = self._read()
        if found is None or holder.get("nonce") != self._nonce:
            return
        # Where the store knows no condition here, having read counts, and that the lease has time
        # left: to read may have taken long.
        if _now() < self._until - LEASE_S / 4:
            self.stored.delete(found.tag)

    def _renew(self) -> None:
        while self._tag is not None and not self._ended.wait(_RENEW_EVERY_S):
            try:
                if not self._put(self._tag):
                    self._tag = None  # somebody else's now
            except OSError:  # no answer: tried again until it has run out, which check() sees
                continue

    def _put(self, before: str | None) -> bool:
        """Put the lease where it has the tag of before; return whether it is this run's."""
        until = _now() + LEASE_S  # counted from before the store can have begun to
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.since))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, **_where_pids()}
        holder["until"] = time.time() + LEASE_S  # for a label-images that still goes by it
        holder |= {"nonce": self._nonce, "counts_until": until}
        tag = self.stored.put(json.dumps(holder).encode(), before)
        if tag is None:
            return self._is_ours()
        self._tag, self._until = tag, until
        return True

    def _is_ours(self) -> bool:
        """Whether the lease in the store is one that this run put, without hearing that it did.

        It is then held for as long as that put counts, which may be one of before.
        """
        holder, found = self._read()
        if found is None or holder.get("nonce") != self._nonce:
            return False
        self._tag, self._until = found.tag, holder["counts_until"]
        return True

    def _read(self) -> tuple[dict[str, Any], Found | None]:
        """Who holds the lease, and the object; None where there is none."""
        found = self.stored.read()
        try:
            holder = json.loads(found.data) if found else {}
        except ValueError:
            holder = {}
        return holder if isinstance(holder, dict) else {}, found

    def _is_free(self, holder: dict[str, Any], found: Found) -> bool:
        return _is_dead(holder) or found.age_s() > LEASE_S + _STORE_DIFFERS_S


def _now() -> float:
    """Seconds by a clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


def _where_pids() -> dict[str, str]:
    """Where a process id means one process: a boot of a kernel, and a namespace of it.

    Containers may share a name, and have the same numbers for other processes. Empty where the
    system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot_id": boot, "pid_namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder is surely a process that is no more: one of this host, boot and namespace.

    Of any other only time tells, by the lack of renewal.
    """
    here, pid = {"host": socket.gethostname(), **_where_pids()}, holder.get("pid")
    is_here = len(here) == 3 and all(holder.get(name) == value for name, value in here.items())
    if not is_here or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


@contextmanager
def hold_lease(place: StorePath) -> Iterator[Lease | None]:
    """Hold the lease at `place`; None where the store has no conditional writes, or its client is
    not here.

    Raises JobLocked when another run has it.
    """
    stored = conditional(place)
    if stored is None:
        yield None
        return
    lease = Lease(stored, place)
    try:
        lease.acquire()
    except OSError as error:
        raise JobError(f"{place} cannot be written: {error}") from error
    try:
        yield lease
    finally:
        with suppress(OSError):  # it runs out by itself
            lease.release()
