"""A relay that makes a server on this machine far away: what a client sends arrives some time later."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def far_away(port: int, delay_s: float) -> Iterator[int]:
    """Relay a port of 127.0.0.1, every request `delay_s` late; yield the relay's port."""
    started: list[int] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def late(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
        try:
            while data := await source.read(1 << 18):
                await asyncio.sleep(delay)
                target.write(data)
                await target.drain()
        except OSError:
            pass  # one side went away
        finally:
            target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(late(reader, upstream_writer, delay_s), late(upstream, writer, 0))

    async def serve() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0, backlog=512)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    def run() -> None:
        with suppress(RuntimeError):  # which says that it was stopped
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
