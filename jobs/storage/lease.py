"""The lease that keeps two runs off one job in an object store, where there is no kernel to lock
files.

A run puts lease.json on the condition that there is none, renews it while it works and removes it
at its end; each put is on the condition that the object is still the one this run put (S3's
conditional writes). A lease that was not renewed for LEASE_S is nobody's, nor is that of a dead
process of this machine. Needs boto3, since pyarrow.fs has no conditional writes, and a store that
speaks S3.

No two machines' clocks are compared. How old a lease is the store says, by its own clock: when it
was put, and what the time is now. How long this run may still count on its lease, a clock says that
nobody sets.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
        if self._tag is not None and _now() < self._until:
            self.client.delete_object(Bucket=self.bucket, Key=self.key)

    def _renew(self) -> None:
        while self._tag is not None and not self._ended.wait(_RENEW_EVERY_S):
            try:
                if not self._put(IfMatch=self._tag):
                    self._tag = None  # somebody else's now
            except Exception:  # noqa: BLE001 - no answer: tried again until it has run out, which check() sees
                continue

    def _put(self, **condition: str) -> bool:
        """Put the lease on a condition; return whether that held."""
        until = _now() + LEASE_S  # counted from before the store can have begun to
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.since))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        holder["until"] = time.time() + LEASE_S  # for a label-images that still goes by it
        try:
            answer = self.client.put_object(
                Bucket=self.bucket, Key=self.key, Body=json.dumps(holder).encode(), **condition
            )
        except self.client.exceptions.ClientError as error:
            status, code = (
                error.response["ResponseMetadata"]["HTTPStatusCode"],
                error.response["Error"]["Code"],
            )
            if status in (409, 412) or code == "NoSuchKey":
                return False
            raise
        self._tag, self._until = answer["ETag"], until
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


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine that is no more."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, TypeError):
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
