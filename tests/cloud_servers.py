"""Real servers on loopback of the protocols of stores: moto for S3, Azurite for Azure, which
`make azurite` installs with npm, and gcp-storage-emulator for Google.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from tests.helpers import ROOT
from tests.store_server import CREDENTIALS

AZURITE = ROOT / ".venv" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob"
ACCOUNT = "devstoreaccount1"
# Azurite's own and public: the same in every installation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Kind:
    """How a kind of store is started, called and connected to, at a port of this machine."""

    name: str
    missing: Callable[[], str | None]  # why it cannot be started here
    command: Callable[[int], list[str]]
    uri: Callable[[str, str, int], str]  # of a folder in a bucket
    connect: Callable[[int], pafs.FileSystem]
    environment: dict[str, str]


def _azurite_missing() -> str | None:
    if shutil.which("node") is None:
        return "needs Node.js, for Azurite"
    return None if AZURITE.is_dir() else "Azurite is not installed: make azurite"


def _azurite(port: int) -> list[str]:
    return [
        "node",
        str(AZURITE / "main.js"),
        "--blobHost=127.0.0.1",
        f"--blobPort={port}",
        "--inMemoryPersistence",
        "--skipApiVersionCheck",  # pyarrow's and obstore's clients are newer than it
        "--disableTelemetry",
        "--silent",
    ]


def _azure(port: int) -> pafs.FileSystem:
    host: Any = {f"{api}_storage_authority": f"127.0.0.1:{port}" for api in ("blob", "dfs")}
    host |= {"blob_storage_scheme": "http", "dfs_storage_scheme": "http"}
    return pafs.AzureFileSystem(ACCOUNT, account_key=KEY, **host)


def _google_missing() -> str | None:
    try:
        import gcp_storage_emulator  # noqa: F401 - whether it is there
    except ImportError:
        return "gcp-storage-emulator is not installed"
    return None


def _google_command(port: int) -> list[str]:
    module = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1"]
    return [*module, f"--port={port}", "--in-memory"]


def _google(port: int) -> pafs.FileSystem:
    return pafs.GcsFileSystem(
        anonymous=True, scheme="http", endpoint_override=f"127.0.0.1:{port}", project_id="test"
    )


def _s3(port: int) -> pafs.FileSystem:
    return pafs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{port}",
        allow_bucket_creation=True,
    )


KINDS = {
    "s3": Kind(
        "s3",
        lambda: None,
        lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        lambda bucket, path, port: (
            f"s3://{bucket}/{path}?scheme=http&endpoint_override=127.0.0.1:{port}"
        ),
        _s3,
        CREDENTIALS,
    ),
    "azure": Kind(
        "azure",
        _azurite_missing,
        _azurite,
        lambda bucket, path, port: (
            f"abfs://{ACCOUNT}@127.0.0.1:{port}/{bucket}/{path}?enable_tls=false"
        ),
        _azure,
        {"AZURE_STORAGE_KEY": KEY},
    ),
    "google": Kind(
        "google",
        _google_missing,
        _google_command,
        lambda bucket, path, port: (
            f"gs://anonymous@{bucket}/{path}?scheme=http&endpoint_override=127.0.0.1:{port}"
            "&retry_limit_seconds=1"
        ),
        _google,
        {},
    ),
}


@contextmanager
def cloud_server(kind: Kind, folder: Path) -> Iterator[int]:
    """Start a server; yield its port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        kind.command(port), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None, f"the server of {kind.name} did not start"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


def put_folder(fs: pafs.FileSystem, folder: Path, to: str) -> None:
    """Upload the files of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with fs.open_output_stream(f"{to}/{path.relative_to(folder)}") as stream:
                stream.write(path.read_bytes())
