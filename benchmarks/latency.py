"""A store on this machine that is far away and costs little: every answer comes some time later.

Objects are answered for here, in a few lines, since a server in Python would take the cores that
are to be measured; all else (listings, writes) goes to a real S3 server.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote


class FarStore:
    """Serves the files of a folder as the objects of `prefix` ("/bucket/all/"), and relays other
    requests to `port`.
    """

    def __init__(self, folder: Path, prefix: str, port: int, delay_s: float) -> None:
        self.folder, self.prefix, self.port, self.delay_s = folder, prefix, port, delay_s
        self.requests: Counter[str] = Counter()  # by method

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self.delay_s)
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
                self.requests[method] += 1
                path = unquote(target)
                if method in ("HEAD", "GET") and path.startswith(self.prefix):
                    writer.write(self._object(method, path, head))
                    await writer.drain()
                else:
                    await self._relay(head, reader, writer)
                    return
        writer.close()

    def _object(self, method: str, path: str, head: bytes) -> bytes:
        file = self.folder / path.removeprefix(self.prefix)
        if not file.is_file():
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        data, status, extra = file.read_bytes(), "200 OK", ""
        size = len(data)
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        if b"range" in fields:
            first, last = fields[b"range"].decode().removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or size), size - 1)
            data, status, extra = (
                data[begin : end + 1],
                "206 Partial Content",
                f"Content-Range: bytes {begin}-{end}/{size}\r\n",
            )
        length = size if method == "HEAD" else len(data)
        answer = (
            f'HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: "e"\r\nAccept-Ranges: bytes\r\n{extra}'
            f"Last-Modified: {formatdate(file.stat().st_mtime, usegmt=True)}\r\n\r\n"
        ).encode()
        return answer if method == "HEAD" else answer + data

    async def _relay(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One request and its answer, then the connection ends."""
        upstream, upstream_writer = await asyncio.open_connection("127.0.0.1", self.port)
        upstream_writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

        async def send() -> None:
            while data := await reader.read(1 << 18):
                upstream_writer.write(data)
                await upstream_writer.drain()

        sending = asyncio.create_task(send())
        while data := await upstream.read(1 << 18):
            writer.write(data)
            await writer.drain()
        sending.cancel()
        upstream_writer.close()
        writer.close()


@contextmanager
def far_away(store: FarStore) -> Iterator[int]:
    """Start a store; yield its port on 127.0.0.1."""
    started: list[int] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(store.serve, "127.0.0.1", 0, backlog=512, limit=1 << 20)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    def run() -> None:
        with suppress(RuntimeError):  # which says that it was stopped
            loop.run_until_complete(serve())
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
