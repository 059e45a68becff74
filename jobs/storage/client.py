"""A bucket's client for what pyarrow.fs needs several requests for: reading an object, putting one.

pyarrow.fs asks for an object's size before it reads it. In Azure it first puts an empty object
under the name it is to write, which a reader sees, and which stays where the run is killed.
obstore (Rust's object_store) reads by one GET, and what it puts is there whole or not at all.

`connect` gives the client of a bucket as pyarrow.fs connects to it, with the same credentials:
of S3 for reads, of Azure for reads and writes; None where pyarrow.fs does it, for other stores and
where obstore is not installed. Listings, copies and deletions are pyarrow's everywhere.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from jobs.errors import JobError

# A large photo over a slow line takes minutes: it may, as long as something comes of it.
_TIMES: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "120s", "timeout": "3600s"}
# object_store's own; ours (retry.py) come on top, for what it does not repeat.
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_CHUNK = 8 << 20
# Botocore renews credentials ten minutes before they end: they are asked for again before that.
_CREDENTIALS_LAST = timedelta(minutes=5)
# What obstore cannot call by name: empty parts, dots, control characters.
_NO_KEY = re.compile(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]")
# What an address may say of S3 for this client to be connected in the same way.
_KNOWN = {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"}

ACCOUNT_KEY = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
SAS_TOKEN = "AZURE_STORAGE_SAS_TOKEN"


class Client:
    """One bucket or container. Raises OSError, FileNotFoundError or PermissionError."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def has_name_for(self, key: str) -> bool:
        return not _NO_KEY.search(key)

    def read(self, key: str, start: int, size: int | None) -> bytes:
        """Read `size` bytes, or all from `start` on, with one GET."""
        if size == 0:
            return b""
        with _os_errors(key):
            if size is not None:
                data = self._store.get_range(key, start=start, length=size).to_bytes()
            else:
                options = {"range": {"offset": start}} if start else None
                data = self._store.get(key, options=options).bytes().to_bytes()
        if size is not None and len(data) != size:
            raise OSError(f"{len(data)} of {size} bytes came")
        return bytes(data)

    def read_with_tag(self, key: str) -> tuple[bytes, str, datetime]:
        """The bytes of an object, its tag, and when it was put, by the store's clock."""
        with _os_errors(key):
            found = self._store.get(key)
            meta = found.meta
            return found.bytes().to_bytes(), meta["e_tag"], meta["last_modified"]

    def put(self, key: str, source: Path, content_type: str | None = None) -> None:
        """Put a file: readers see what was there before, or all of it."""
        attributes = {"Content-Type": content_type} if content_type else None
        with _os_errors(key):
            self._store.put(
                key, source, attributes=attributes, chunk_size=_CHUNK, max_concurrency=4
            )

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Put an object where it has this tag still, or where there is none; its new tag.

        None where the store refuses, and puts nothing.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with _os_errors(key):
                put = self._store.put(key, data, mode={"e_tag": tag} if tag else "create")
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return None
        new_tag: str = put["e_tag"]
        return new_tag

    def delete(self, key: str) -> None:
        with _os_errors(key):
            self._store.delete(key)


@contextmanager
def _os_errors(key: str) -> Iterator[None]:
    """Say what obstore raises as the errors of files; what a condition refused stays what it is."""
    from obstore import exceptions as failed

    try:
        yield
    except (failed.AlreadyExistsError, failed.PreconditionError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such object", key) from None
    except (failed.PermissionDeniedError, failed.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, _reason(error), key) from None
    except failed.BaseError as error:
        raise OSError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The first line alone, without the address's query: that may hold a token."""
    return re.sub(r"\?\S*", "", str(error).splitlines()[0])[:300]


def connect(fs: Any, bucket: str, query: dict[str, str], endpoint: str | None) -> Client | None:
    """The client of a bucket that pyarrow.fs is connected to; None where it does all by itself.

    `query` is what the address says, `endpoint` the place of a store that is not the provider's.
    """
    try:
        import obstore.store
    except ImportError:
        return None
    options: dict[str, Any] = {
        "client_options": {**_TIMES, "allow_http": True},
        "retry_config": _RETRIES,
    }
    if fs.type_name == "s3" and query.keys() <= _KNOWN:
        credentials = _s3_credentials()
        if credentials is None:
            return None
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint"] = endpoint
        return Client(obstore.store.S3Store(bucket, region=fs.region, **credentials, **options))
    if fs.type_name == "abfs":
        account = _azure_options(fs)
        return Client(
            obstore.store.AzureStore(
                bucket,
                account_name=account["account_name"],
                endpoint=_azure_endpoint(account),
                **_azure_credentials(account),
                **options,
            )
        )
    return None


def _s3_credentials() -> dict[str, Any] | None:
    """As AWS's own clients find them; None where only boto3 would, and is not installed."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return {}  # obstore reads them, too
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return {"skip_signature": True}  # as pyarrow.fs: what all may read can be read
        return {"credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_LAST)}
    except BotoCoreError:  # a profile that is not there, say: pyarrow.fs may know better
        return None


def with_account_key(fs: Any) -> Any:
    """Connect to Azure with the key or token of the environment, where it has one.

    pyarrow.fs takes them from an address alone, and addresses are shown. Raises JobError where what
    writes to Azure is not installed.
    """
    if fs.type_name == "abfs" and find_spec("obstore") is None:
        raise JobError("Azure's store needs obstore: pip install 'label-images[azure]'")
    key = next((os.environ[name] for name in ACCOUNT_KEY if os.environ.get(name)), "")
    token = os.environ.get(SAS_TOKEN, "")
    if fs.type_name != "abfs" or not (key or token):
        return fs
    given = {"account_key": key} if key else {"sas_token": f"?{token.removeprefix('?')}"}
    return pafs.AzureFileSystem(**{**_azure_options(fs), **given})


def _azure_options(fs: Any) -> dict[str, str]:
    """How pyarrow.fs is connected, which it tells only where it is pickled."""
    _, (options,) = fs.__reduce__()
    return dict(options)


def _azure_endpoint(account: dict[str, str]) -> str:
    """Where the blobs of an account are: its name comes first in the host's, or in the path."""
    name, host = account["account_name"], account["blob_storage_authority"]
    place = f"{name}{host}" if host.startswith(".") else f"{host}/{name}"
    return f"{account['blob_storage_scheme']}://{place}"


def _azure_credentials(account: dict[str, str]) -> dict[str, Any]:
    if account["account_key"]:
        return {"account_key": account["account_key"]}
    if account.get("sas_token"):
        return {"sas_key": account["sas_token"]}
    try:
        from obstore.auth.azure import AzureCredentialProvider
    except ImportError:
        return {}  # a client secret, a federated token or a managed identity, as obstore finds them
    return {"credential_provider": AzureCredentialProvider()}
