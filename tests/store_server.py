"""A real S3 server on loopback (moto's), and a proxy before it that is slow, refuses, cuts and
counts.
"""

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[int]:
    """Start a server; yield its port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None, "moto's server did not start"
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


def client(port: int) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


def upload(s3: Any, folder: Path, bucket: str, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put_object(
                Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes()
            )


@dataclass
class Faults:
    """What a proxy does to requests whose path has a name in it; a number says how often, then they
    pass.
    """

    delay_s: float = 0.0
    refuse: dict[str, float] = field(default_factory=dict)  # 503 Slow Down
    deny: dict[str, float] = field(default_factory=dict)  # 403
    gone: dict[str, float] = field(default_factory=dict)  # 404
    cut: dict[str, float] = field(default_factory=dict)  # half of the answer, then nothing
    lose: dict[str, float] = field(default_factory=dict)  # what is put arrives, its answer does not
    later_s: float = 0.0  # the store's clock goes on by so much: how long ago all was put
    requests: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def takes(self, which: dict[str, float], path: str) -> bool:
        with self.lock:
            for name, left in which.items():
                if name in path and left > 0:
                    which[name] = left - 1
                    return True
        return False


_STORE_TIME = time.time  # also where a test sets the clock of this process

_OF_THE_CONNECTION = ("transfer-encoding", "connection", "content-length", "expect")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    upstream: int

    def _serve(self) -> None:
        faults = self.faults
        with faults.lock:
            faults.requests[self.command] += 1
            faults.at_once += 1
            faults.most_at_once = max(faults.most_at_once, faults.at_once)
        try:
            self._answer(faults)
        finally:
            with faults.lock:
                faults.at_once -= 1

    def _answer(self, faults: Faults) -> None:
        body = self._body()
        time.sleep(faults.delay_s)
        for which, status, code in (
            (faults.refuse, 503, "SlowDown"),
            (faults.deny, 403, "AccessDenied"),
            (faults.gone, 404, "NoSuchKey"),
        ):
            if faults.takes(which, self.path):
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)
                return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _OF_THE_CONNECTION
        }
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if self.command == "PUT" and faults.takes(faults.lose, self.path):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*_OF_THE_CONNECTION, "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command == "GET" and len(data) > 200 and faults.takes(faults.cut, self.path):
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or _STORE_TIME()) + self.faults.later_s)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def faulty_proxy(upstream: int, is_quick: bool = True) -> Iterator[tuple[int, Faults]]:
    """Start a proxy before a server; yield its port and the faults it makes, to be changed at any
    time. A quick one sends what follows the headers without waiting for their receipt.
    """
    faults = Faults()
    settings = {"faults": faults, "upstream": upstream, "disable_nagle_algorithm": is_quick}
    handler = type("Handler", (_Handler,), settings)
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1], faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
