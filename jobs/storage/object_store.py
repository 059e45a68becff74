"""Object stores: keys in a bucket, used as folders and files are.

`at(text)` gives a pathlib.Path for a path, and a StorePath for a URI such as s3://bucket/photos: of
pathlib's methods those that this project uses, over pyarrow.fs. A file appears whole, with one PUT;
there is no rename. Requests that fail for a reason that may pass are repeated, also those of an
open file. What a URI says after its ? (region=, endpoint_override=) goes with the path, also to
another process, and is never shown nor stored. Credentials come from the environment, as pyarrow.fs
documents it; in a URI they are refused, since a URI is shown and stored.

S3 does not survive a fork: a process that uses a store must start others anew (`start_method`).
"""

import atexit
import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow.fs as pafs

from jobs.errors import JobError

from .client import Client
from .connections import client_of, endpoint, file_system, is_connected
from .retry import persistent
from .store_file import StoreFile, read_whole

_ONE_PUT, _MOST_COPIED = 8 << 20, 5 << 30  # bytes
REQUESTS_AT_ONCE = 32  # to a store, whose answers take long, whatever their size
_BUFFER = 1 << 20
_IN_A_JOB = re.compile(r"/\.[^/]+\.job/")


class StorePath:
    """A key of an object store, or all that lies below it.

    `text` is its URI without query, as plain text. `query` says how to connect, and may hold
    secrets: it is no part of what a path is called, nor of what it equals.
    """

    def __init__(self, text: str, query: str = "") -> None:
        self.text, self.query = text.rstrip("/"), query

    @property
    def fs(self) -> Any:
        """Raises JobError where pyarrow.fs cannot connect."""
        return self._connected()[0]

    @property
    def key(self) -> str:
        # An Azure account's address has no container in it: there the first part of the path is it.
        return f"{self._connected()[1]}/{_split(self.text)[2]}".strip("/")

    def _connected(self) -> tuple[Any, str]:
        return file_system(_split(self.text)[0], self.query)

    def client(self) -> tuple[Client | None, str]:
        """What reads and puts with one request, and the key by which it calls this.

        None where there is no such client, or it has no name for the key.
        """
        bucket, _, key = self.key.partition("/")
        client = client_of(_split(self.text)[0], self.query, bucket)
        return (client if client and client.has_name_for(key) else None), key

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"StorePath({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __lt__(self, other: "StorePath") -> bool:
        return self.text < other.text

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(f"{self.text}/{name}", self.query)

    @property
    def name(self) -> str:
        return self.text.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "StorePath":
        return StorePath(self.text.rsplit("/", 1)[0], self.query)

    def with_name(self, name: str) -> "StorePath":
        return self.parent / name

    def client_options(self) -> dict[str, str]:
        """What the URI says of region and endpoint, as boto3 calls it."""
        options = {"region_name": self.fs.region, "endpoint_url": endpoint(self.query)}
        return {name: value for name, value in options.items() if value}

    @persistent
    def info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.key)

    def exists(self) -> bool:
        return bool(self.info().type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self.info().type == pafs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self.info().type == pafs.FileType.Directory)

    def is_symlink(self) -> bool:
        return False

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self.as_file(), _BUFFER)

    def as_file(self) -> StoreFile:
        return StoreFile(lambda: self.fs.open_input_file(self.key))

    def read_bytes(self) -> bytes:
        return self.read_range(0, None)

    @persistent
    def read_range(self, start: int, size: int | None) -> bytes:
        """Read `size` bytes, or all from `start` on. Raises OSError where fewer come."""
        client, key = self.client()
        if client is not None:
            return client.read(key, start, size)
        if size is None and not start and self.fs.type_name == "gcs":
            with self.fs.open_input_stream(self.key, compression=None) as stream:  # by one GET
                return bytes(stream.read())
        with self.fs.open_input_file(self.key) as file:
            size = file.size() - start if size is None else size
            return read_whole(file, size, start)

    def upload(
        self,
        source: Path,
        content_type: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Put a file of this machine here; `content_type` is what the store says it is to browsers.
        `check` may object right before readers see it.

        One of several requests goes to another key first: what is copied by the store itself is
        whole. Each writer has a key of its own, in the job folder, where a run that goes on looks
        for what a killed one left.
        """
        if not _ONE_PUT < source.stat().st_size < _MOST_COPIED:
            check()
            self._upload(source, content_type)
            return
        aside = self if _IN_A_JOB.search(self.text) else job_folder(self) / self.name
        new = aside.with_name(f"{self.name}.{secrets.token_hex(4)}.new")
        new._upload(source, content_type)
        check()
        new.copy_to(self)
        new.unlink()

    def _upload(self, source: Path, content_type: str | None) -> None:
        """In a thread of its own: a signal ends this one, and a stream that is closed before its time
        puts what it has so far, in the place of what was there.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="put") as thread:
            thread.submit(self._put, source, content_type).result()

    @persistent
    def _put(self, source: Path, content_type: str | None) -> None:
        client, key = self.client()
        if client is not None and self.fs.type_name == "abfs":
            client.put(key, source, content_type)
            return
        metadata = {"Content-Type": content_type} if content_type else None
        with (
            source.open("rb") as file,
            self.fs.open_output_stream(self.key, metadata=metadata) as stream,
        ):
            shutil.copyfileobj(file, stream, 1 << 23)

    @persistent
    def copy_to(self, other: "StorePath") -> None:
        """Within the store: readers of `other` see what was there before, or all of this."""
        self.fs.copy_file(self.key, other.key)

    @persistent
    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.fs.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def iterdir(self) -> Iterator["StorePath"]:
        return (self / info.base_name for info in self.entries())

    @persistent
    def entries(self, recursive: bool = False) -> list[pafs.FileInfo]:
        """What lies right below, or all that does; of Google's pyarrow.fs tells no folders."""
        below = pafs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        return list(self.fs.get_file_info(below))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """For patterns such as *.json."""
        assert pattern.startswith("*")
        return (path for path in self.iterdir() if path.name.endswith(pattern[1:]))

    @persistent
    def rmdir(self) -> None:
        """Removes what is below, too: a folder is nothing but keys that begin alike."""
        with suppress(FileNotFoundError):  # Google's, where nothing marks it as a folder
            self.fs.delete_dir(self.key)


AnyPath = Path | StorePath


def is_uri(text: str) -> bool:
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.isalnum()


def has_credentials(uri: str) -> bool:
    """Whether a URI has a password in it, as in s3://KEY:SECRET@bucket.

    Of S3 any @ or colon before the first slash counts: no bucket's name has one, and a secret may
    itself have a slash.
    """
    scheme, _, rest = uri.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if scheme.lower() == "s3":
        return "@" in authority or ":" in authority
    return ":" in authority.rpartition("@")[0]


def at(text: str | os.PathLike[str]) -> AnyPath:
    """A path, or a place in an object store, which is connected to when it is first used.

    Raises JobError for a URI with credentials in it.
    """
    text = os.fspath(text)
    if not is_uri(text):
        return Path(text)
    if has_credentials(text):
        scheme = text.partition("://")[0]
        raise JobError(
            f"an address {scheme}://... has credentials in it, or something like them, before the "
            "name of the bucket; addresses are shown, and stored with each image. Give "
            "credentials by the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"or AWS_PROFILE), and the address without them, as {scheme}://BUCKET/FOLDER"
        )
    text, _, query = text.partition("?")
    base, scheme, rest = _split(unquote(text))
    if scheme == "file":
        return Path(f"/{rest}")
    return StorePath(f"{base}/{rest}", query)


def job_folder(out: Any) -> Any:
    """The folder beside a table, in which the work on it has its state (jobs/job.py)."""
    return out.with_name(f".{out.name}.job")


def at_one_of(places: Iterable[AnyPath], text: str) -> StorePath:
    """The place that a URI without query names, connected to as one of `places` in its bucket is."""
    bucket = _split(text)[0]
    for place in places:
        if isinstance(place, StorePath) and _split(place.text)[0] == bucket:
            return StorePath(text, place.query)
    return StorePath(text)


def start_method() -> str:
    """How this process may start others: by a fork, which is fast, as long as it has used no store."""
    return "forkserver" if is_connected() else "fork"


def as_arrow(path: AnyPath) -> Any:
    """What pyarrow's readers take for a path."""
    return path.as_file() if isinstance(path, StorePath) else str(path)


def local_copy(path: AnyPath) -> Path:
    """The file itself, or a copy of it on this machine, which goes with this process."""
    if isinstance(path, Path):
        return path
    handle, name = tempfile.mkstemp(dir=scratch(), prefix=path.name)
    with path.open() as source, open(handle, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 22)
    return Path(name)


@cache
def scratch() -> Path:
    """A folder on this machine for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="label-images-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _split(text: str) -> tuple[str, str, str]:
    """Split "s3://bucket/a/b" -> "s3://bucket", "s3", "a/b"."""
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", scheme, key
