"""Real processes of the command without the seconds that each takes to import torch.

A server imports once what the command needs, and forks a process for each command: with a process
id, files, environment, working folder and end of its own, as if it had been started by a shell.
What an interpreter takes from its environment when it starts (PYTHON..., the locale) is the
server's, so for another one another server is started. Where the start itself is the point, or the
name that a process goes by, tests start one.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parent.parent

_AT_THE_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "OPENBLAS_", "LD_")


def at_the_start(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What of an environment an interpreter and its libraries ask for once."""
    return tuple(sorted(item for item in environment.items() if item[0].startswith(_AT_THE_START)))


class Server:
    """A process that forks. `run` as often as wanted, one at a time; `close` at the end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking", str(its.fileno())],
                cwd=ROOT,
                env=dict(environment),
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def run(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        before: str = "",
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command with arguments in a process of its own; `before` is Python it runs first,
        or instead where that ends it.
        """
        with self.start(arguments, cwd, environment, before) as running:
            try:
                code = running.wait(timeout_s)
            except TimeoutError:
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            return subprocess.CompletedProcess(arguments, code, *running.said())

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        before: str = "",
    ) -> "Running":
        """Start such a process. Until it has ended this server starts no other."""
        out, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - kept
        order = {
            "arguments": [*map(os.fsdecode, arguments)],
            "cwd": os.fspath(cwd),
            "environment": dict(environment),
            "before": before,
        }
        socket.send_fds(self.socket, [json.dumps(order).encode()], [out.fileno(), errors.fileno()])
        self.socket.settimeout(120)
        return Running(int(self.socket.recv(64)), self.socket, out, errors)

    def close(self) -> None:
        self.socket.close()
        self.process.kill()  # it has nothing to tidy up, and torch takes its time to
        self.process.wait()


@dataclass
class Running:
    """A process that was started: to be waited for or killed, which leaving its `with` does."""

    pid: int
    server: socket.socket
    out: IO[bytes]
    errors: IO[bytes]
    returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended; None as long as it runs."""
        with suppress(BlockingIOError):
            self.wait(0)
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        """Wait for its end. Raises TimeoutError."""
        if self.returncode is None:
            self.server.settimeout(timeout_s)
            self.returncode = int(self.server.recv(64))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and nobody asked yet
                os.kill(self.pid, number)

    def said(self) -> tuple[bytes, bytes]:
        """What it wrote so far, and its errors."""
        self.out.seek(0)
        self.errors.seek(0)
        return self.out.read(), self.errors.read()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait(60)
        self.out.close()
        self.errors.close()


# The server for an environment, kept for the next who wants one like it.
Servers = Callable[[Mapping[str, str]], Server]


def serve(connection: socket.socket) -> NoReturn:
    """Fork a process for each order; say its id, and how it ended."""
    gc.collect()
    gc.freeze()  # so that no child looks through, and thereby copies, all that was imported
    gc.enable()
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not data:
            sys.exit()
        with warnings.catch_warnings(action="ignore"):  # of threads: import_all() knows which
            pid = os.fork()
        if pid == 0:
            connection.close()
            _become(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(order: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Be the process that was ordered, and end as an interpreter does, but for taking itself apart."""
    for descriptor, standard in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv = ["label-images", *order["arguments"]]
    code: Any = 0
    try:
        exec(order["before"], {"__name__": "before"})  # a test's own
        runpy.run_module("pipeline.cli", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as an interpreter shows what nobody caught
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def import_all() -> None:
    """What commands import, some of it late.

    The threads that this starts are OpenBLAS's and jemalloc's, which know of forks, and which a run
    itself has when it forks its workers.
    """
    import importlib

    from PIL import Image

    for name in (
        "pyarrow.dataset",
        "pyarrow.parquet",
        "pyarrow.fs",
        "torch",
        "boto3",
        "openvino",
        "pillow_heif",
        "jobs.storage.lease",
        "pipeline.cli.commands",
        "pipeline.cli.no_table",
        "pipeline.cli.preview",
        "pipeline.cli.status",
        "pipeline.label.local",
        "pipeline.label.reference",
        "pipeline.load.crew",
        "pipeline.run",
        "pipeline.table.beside",
        "pipeline.table.repair",
        "pipeline.table.verify",
    ):
        importlib.import_module(name)
    Image.init()  # the formats that Pillow knows, each a module


if __name__ == "__main__":
    gc.disable()  # nearly all that an import makes stays
    import_all()
    serve(socket.socket(fileno=int(sys.argv[1])))
