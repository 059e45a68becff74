"""An object that is put and deleted on a condition: what a lease is made of (lease.py).

    put(data, tag)   where the object still has that tag; None: where there is no object. Its new
                     tag, or None where the store refuses
    read()           its bytes, its tag and its age by the store's own clock; None where there is none
    delete(tag)

S3's by boto3, since obstore knows neither conditions on deleting nor what time the store has, and
Azure's by obstore. All raise OSError where no answer comes, or one that is neither.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from .client import Client
from .object_store import StorePath
from .retry import persistent


@dataclass(frozen=True)
class Found:
    data: bytes
    tag: str
    age_s: Callable[[], float]  # since it was put


class S3Object:
    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self.client, self._where = client, {"Bucket": bucket, "Key": key}

    def put(self, data: bytes, tag: str | None) -> str | None:
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        try:
            with _os_errors():
                answer = self.client.put_object(**self._where, Body=data, **condition)
        except self.client.exceptions.ClientError as error:
            if _status(error) in (409, 412) or error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise OSError(str(error)) from error
        new_tag: str = answer["ETag"]
        return new_tag

    def read(self) -> Found | None:
        try:
            with _os_errors():
                answer = self.client.get_object(**self._where)
                data = answer["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        except self.client.exceptions.ClientError as error:
            raise OSError(str(error)) from error
        return Found(data, answer["ETag"], lambda: _age_s(answer))

    def delete(self, tag: str) -> None:
        """Delete the object where it is still the one that has just been read.

        A store that knows no condition here takes no notice of it, or refuses it by name.
        """
        try:
            with _os_errors():
                self.client.delete_object(**self._where, IfMatch=tag)
        except self.client.exceptions.ClientError as error:
            if _status(error) != 501:
                raise OSError(str(error)) from error
            with _os_errors():
                self.client.delete_object(**self._where)


class AzureObject:
    def __init__(self, client: Client, key: str) -> None:
        self._client, self._key = client, key

    @persistent
    def put(self, data: bytes, tag: str | None) -> str | None:
        return self._client.put_if(self._key, data, tag)

    @persistent
    def read(self) -> Found | None:
        try:
            data, tag, put_at = self._client.read_with_tag(self._key)
        except FileNotFoundError:
            return None
        return Found(data, tag, lambda: (self._now() - put_at).total_seconds())

    def delete(self, tag: str) -> None:
        """Delete the object, without a condition: obstore has none for it."""
        self._client.delete(self._key)

    @persistent
    def _now(self) -> datetime:
        """What the time is by the store's clock: when an object is put now.

        By this name a run that holds the job finds one that a killed run left (jobs/holding.py).
        """
        key = f"{self._key}.{secrets.token_hex(4)}.new"
        self._client.put_if(key, b"", None)
        try:
            _, _, now = self._client.read_with_tag(key)
        except FileNotFoundError:  # the run that holds the job swept it: put another one
            raise OSError("the store does not tell the time") from None
        with suppress(FileNotFoundError):
            self._client.delete(key)
        return now


Conditional = S3Object | AzureObject


def conditional(place: StorePath) -> Conditional | None:
    """The object at a place; None where the store knows no conditions, or its client is not here."""
    kind = place.fs.type_name
    if kind == "s3":
        try:
            import boto3
        except ImportError:
            return None
        bucket, _, key = place.key.partition("/")
        return S3Object(boto3.client("s3", **place.client_options()), bucket, key)
    client, key = place.client()
    return AzureObject(client, key) if client is not None and kind == "abfs" else None


@contextmanager
def _os_errors() -> Iterator[None]:
    """Say that no answer came as an error of a file."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise OSError(str(error)) from error


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
