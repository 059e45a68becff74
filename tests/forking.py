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
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

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
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            order = {
                "arguments": [*map(os.fsdecode, arguments)],
                "cwd": os.fspath(cwd),
                "environment": dict(environment),
                "before": before,
            }
            self.socket.settimeout(timeout_s)
            socket.send_fds(
                self.socket, [json.dumps(order).encode()], [out.fileno(), errors.fileno()]
            )
            pid = int(self.socket.recv(64))
            try:
                code = int(self.socket.recv(64))
            except TimeoutError:
                os.kill(pid, 9)
                self.socket.recv(64)
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), errors.read())

    def close(self) -> None:
        self.socket.close()
        self.process.kill()  # it has nothing to tidy up, and torch takes its time to
        self.process.wait()


# The server for an environment, kept for the next who wants one like it.
Servers = Callable[[Mapping[str, str]], Server]


def serve(connection: socket.socket) -> NoReturn:
    """Fork a process for each order; say its id, and how it ended."""
    gc.collect()
    gc.freeze()  # so that no child looks through, and thereby copies, all that was imported
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
        "torchvision",
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
    import_all()
    serve(socket.socket(fileno=int(sys.argv[1])))
