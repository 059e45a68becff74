"""The connections of this process to stores: a file system for each address, a client for each
bucket.

Credentials come from the environment, as pyarrow.fs documents it; for Azure also a key or a token
(client.py).
"""

import threading
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs as pafs

from jobs.errors import JobError

from .client import Client, connect, with_account_key
from .retry import persistent

_file_systems: dict[str, tuple[Any, str]] = {}  # and the prefix of all keys, by URI
_clients: dict[tuple[str, str], Client | None] = {}  # by URI and bucket
_connecting = threading.Lock()


def file_system(base: str, query: str) -> tuple[Any, str]:
    """The file system of an address such as s3://bucket, and the prefix of all keys in it.

    pyarrow.fs counts a bucket among them. Raises JobError where it cannot connect.
    """
    uri = _uri(base, query)
    with _connecting:
        if uri not in _file_systems:
            try:
                fs, prefix = persistent(pafs.FileSystem.from_uri)(uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                # Without a cause: that may show the query, which may hold a secret.
                reason = str(error).replace(uri, base)
                raise JobError(f"{base} cannot be used: {reason}") from None
            _file_systems[uri] = with_account_key(fs), prefix.rstrip("/")
        return _file_systems[uri]


def client_of(base: str, query: str, bucket: str) -> Client | None:
    """What reads and puts an object with one request; None where pyarrow.fs does it."""
    fs, _ = file_system(base, query)
    place = _uri(base, query), bucket
    with _connecting:
        if place not in _clients:
            _clients[place] = connect(fs, bucket, dict(parse_qsl(query)), endpoint(query))
        return _clients[place]


def endpoint(query: str) -> str | None:
    """Where an address says that its store is, if it is not the provider's."""
    asked = dict(parse_qsl(query))
    host = asked.get("endpoint_override")
    return f"{asked.get('scheme', 'https')}://{host}" if host else None


def is_connected() -> bool:
    """Whether this process has used a store."""
    return bool(_file_systems)


def forget() -> None:
    """Connect anew where a store is used again."""
    _file_systems.clear()
    _clients.clear()


def _uri(base: str, query: str) -> str:
    return f"{base}?{query}" if query else base
