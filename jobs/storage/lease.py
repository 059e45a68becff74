"""The lease that keeps two runs off one job in an object store, where there is no kernel to lock
files.

A run puts lease.json on the condition that there is none, renews it while it works and removes it
at its end; each put is on the condition that the object is still the one this run put (S3's
conditional writes). A lease that was not renewed for LEASE_S is nobody's, nor is that of a dead
process of this machine. Needs boto3, since pyarrow.fs has no conditional writes, and a store that
speaks S3.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.errors import JobError, JobLocked

from .object_store import StorePath

LEASE_S = 60.0
_RENEW_EVERY_S = LEASE_S / 4


class Lease:
    """A held lease. `check` before anything is written that another run must not find changed."""

    def __init__(self, client: Any, bucket: str, key: str, place: StorePath) -> None:
        self.client, self.bucket, self.key, self.place = client, bucket, key, place
        self.since = time.time()
        self._tag: str | None = None  # of the object as this run put it
        self._until = 0.0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Raises JobLocked, naming the holder, when another run has it."""
        if not self._put(IfNoneMatch="*"):
            holder, tag = self._read()
            if tag is not None and (not _is_dead(holder) or not self._put(IfMatch=tag)):
                raise JobLocked(
                    f"another run is at work on this table: process "
                    f"{holder.get('pid', '(unknown)')} on "
                    f"{holder.get('host', 'some host')}, since "
                    f"{holder.get('since', 'some time ago')}; wait for it, "
                    "or stop it"
                )
            if tag is None and not self._put(IfNoneMatch="*"):
                raise JobLocked(
                    "another run has just begun with this table; wait for it, or stop it"
                )
        self._renewer.start()

    def check(self) -> None:
        """Raises JobError where the lease was lost: another run may be at work by now."""
        if self._tag is None or time.time() > self._until:
            raise JobError(
                f"{self.place} could not be renewed for {LEASE_S:.0f} s or was taken by another "
                f"run; nothing more is "
                "written. The same command goes on"
            )

    def release(self) -> None:
        self._ended.set()
        self._renewer.join()
        if self._tag is not None and time.time() < self._until:
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
        until = time.time() + LEASE_S
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.since))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "until": until}
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

    def _read(self) -> tuple[dict[str, Any], str | None]:
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
            return json.loads(answer["Body"].read()), answer["ETag"]
        except (self.client.exceptions.NoSuchKey, ValueError):
            return {}, None


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("until", 0) < time.time():
        return True
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
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
        lease.release()


def _client(place: StorePath) -> Any:
    if place.fs.type_name != "s3":
        return None
    try:
        import boto3
    except ImportError:
        return None
    return boto3.client("s3", **place.client_options())
