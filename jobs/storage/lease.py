"""The lease that keeps two runs off one job in an object store, where there is no kernel to lock
files.

A run puts lease.json on the condition that there is none, renews it while it works and removes it
at its end; each put is on the condition that the object is still the one this run put (S3's
conditional writes). A lease that was not renewed for LEASE_S is nobody's, nor is that of a dead
process of this machine. Needs boto3, since pyarrow.fs has no conditional writes, and a store that
speaks S3.

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
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from jobs.errors import JobError, JobLocked

from .object_store import StorePath

LEASE_S = 60.0
_RENEW_EVERY_S = LEASE_S / 4
# A store tells times in whole seconds, and its machines may differ by a little.
_STORE_DIFFERS_S = 5.0
# It goes on while a machine sleeps, unlike the monotonic clock of Linux.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """A held lease. `check` before anything is written that another run must not find changed."""

    def __init__(self, client: Any, bucket: str, key: str, place: StorePath) -> None:
        self.client, self.bucket, self.key, self.place = client, bucket, key, place
        self.since = time.time()
        self._nonce = secrets.token_hex(16)
        self._tag: str | None = None  # of the object as this run put it
        self._until = 0.0  # by _now()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Raises JobLocked, naming the holder, when another run has it."""
        if not self._put(IfNoneMatch="*"):
            holder, tag, age_s = self._read()
            is_free = age_s > LEASE_S + _STORE_DIFFERS_S or _is_dead(holder)
            if tag is not None and (not is_free or not self._put(IfMatch=tag)):
                raise JobLocked(
                    "another run is at work on this table: process "
                    f"{holder.get('pid', '(unknown)')} on {holder.get('host', 'some host')}, "
                    f"since {holder.get('since', 'some time ago')}; wait for it, or stop it"
                )
            if tag is None and not self._put(IfNoneMatch="*"):
                raise JobLocked(
                    "another run has just begun with this table; wait for it, or stop it"
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
        holder, tag, _ = self._read()
        if tag is not None and holder.get("nonce") == self._nonce:
            self._delete(tag)

    def _delete(self, tag: str) -> None:
        """Delete the lease where it is still the one that has just been read.

        A store that knows no condition here takes no notice of it, or refuses it by name: then
        having read counts, and that the lease has time left, so that none is likely to be taken
        between.
        """
        where = {"Bucket": self.bucket, "Key": self.key}
        try:
            self.client.delete_object(**where, IfMatch=tag)
        except self.client.exceptions.ClientError as error:
            if _status(error) != 501:
                raise
            self.client.delete_object(**where)

    def _renew(self) -> None:
        while self._tag is not None and not self._ended.wait(_RENEW_EVERY_S):
            try:
                if not self._put(IfMatch=self._tag):
                    self._tag = None  # somebody else's now
            except Exception:  # noqa: BLE001 - no answer: tried again until it has run out, which check() sees
                continue

    def _put(self, **condition: str) -> bool:
        """Put the lease on a condition; return whether it is this run's."""
        until = _now() + LEASE_S  # counted from before the store can have begun to
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.since))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, **_where_pids()}
        holder["until"] = time.time() + LEASE_S  # for a label-images that still goes by it
        holder |= {"nonce": self._nonce, "counts_until": until}
        try:
            answer = self.client.put_object(
                Bucket=self.bucket, Key=self.key, Body=json.dumps(holder).encode(), **condition
            )
        except self.client.exceptions.ClientError as error:
            if _status(error) in (409, 412) or error.response["Error"]["Code"] == "NoSuchKey":
                return self._is_ours()
            raise
        self._tag, self._until = answer["ETag"], until
        return True

    def _is_ours(self) -> bool:
        """Whether the lease in the store is one that this run put, without hearing that it did.

        It is then held for as long as that put counts, which may be one of before.
        """
        holder, tag, _ = self._read()
        if tag is None or holder.get("nonce") != self._nonce:
            return False
        self._tag, self._until = tag, holder["counts_until"]
        return True

    def _read(self) -> tuple[dict[str, Any], str | None, float]:
        """The holder, the tag of the lease and its age in seconds; no tag where there is none."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
            holder = json.loads(answer["Body"].read())
        except self.client.exceptions.NoSuchKey:
            return {}, None, 0.0
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else {}, answer["ETag"], _age_s(answer)


def _now() -> float:
    """Seconds by a clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


def _age_s(answer: dict[str, Any]) -> float:
    """How long ago an object was put, by the store's own clock.

    0 where the store does not tell the time: then the object counts as put just now.
    """
    try:
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return 0.0
    if now.tzinfo is None:
        now = now.replace(tzinfo=UTC)
    put: datetime = answer["LastModified"]
    return (now - put).total_seconds()


def _status(error: Any) -> int:
    """The HTTP status of an answer that says no."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


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
    """Hold the lease at `place`; None where the store has no conditional writes, or boto3 is not
    here.

    Raises JobLocked when another run has it.
    """
    client = _client(place)
    if client is None:
        yield None
        return
    bucket, _, key = place.key.partition("/")
    lease = Lease(client, bucket, key, place)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        lease.acquire()
    except (BotoCoreError, ClientError) as error:
        raise JobError(f"{place} cannot be written: {error}") from error
    try:
        yield lease
    finally:
        with suppress(BotoCoreError, ClientError):  # it runs out by itself
            lease.release()


def _client(place: StorePath) -> Any:
    if place.fs.type_name != "s3":
        return None
    try:
        import boto3
    except ImportError:
        return None
    return boto3.client("s3", **place.client_options())
