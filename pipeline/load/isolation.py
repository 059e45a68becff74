"""Decoding one by one in a process of its own, for batches whose worker died or hung.

A decoder is C code that a file's author chose the input of: it may crash, hang, take all memory or
end its process. Here that costs the file at fault its label and no other. Slow, and so only for the
batches that were lost.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from pipeline.failures import Failure

from .decode import register_formats
from .processes import end_with_main_process, worker_context
from .sample import Sample

T = TypeVar("T")  # what becomes of one image: a Sample, a Failure ...

# What a decoder may take beside what its process has already. --max-pixels bounds what it should
# need.
MEMORY_BYTES = 4 << 30


@contextmanager
def isolated(
    load: Callable[[int], T], indices: Sequence[int], limit_s: float
) -> Iterator[Iterator[T | Failure]]:
    """Have `load` called for each index in a child process, a new one after each that was lost. The
    child begins at once, and is at the next image while the last one is used.

    An image that is not there `limit_s` after it is asked for fails with `timeout`; one that ends the
    process with `decoder_crash`, or `out_of_memory` where the kernel killed it.
    """
    if not indices:
        yield iter(())
        return
    child = _Child(load, indices)

    def results() -> Iterator[T | Failure]:
        nonlocal child
        n_done = 0
        while n_done < len(indices):
            if n_done:
                child.end()
                child = _Child(load, indices[n_done:])
            for result in child.results(limit_s):
                n_done += 1
                yield result

    try:
        yield results()
    finally:
        child.end()


def load_isolated(
    load: Callable[[int], T], indices: Sequence[int], limit_s: float
) -> list[T | Failure]:
    """What becomes of all of them (`isolated`)."""
    with isolated(load, indices, limit_s) as results:
        return list(results)


def limit_memory() -> None:
    """Let this process take MEMORY_BYTES beside what it has; then decoders raise MemoryError.

    On Linux only.
    """
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


class _Child:
    """A process that loads one image after another, as far as it gets."""

    def __init__(self, load: Callable[[int], Any], indices: Sequence[int]) -> None:
        context = worker_context()
        self.indices = indices
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(load, indices, sender), daemon=True)
        self.process.start()
        sender.close()  # so that the child's death is an end of file here

    def results(self, limit_s: float) -> Iterator[Any]:
        """Results up to and with the first image that costs the child its life, or all."""
        for index in self.indices:
            if not self.receiver.poll(limit_s):
                detail = f"reading and decoding took longer than --image-timeout {limit_s:g} s"
                yield Failure(index, "timeout", detail)
                return
            try:
                message = self.receiver.recv()
            except (EOFError, OSError):  # before a message, or within one
                self.process.join()
                yield _lost(index, self.process.exitcode)
                return
            yield _unpacked(message)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.receiver.close()


def _serve(load: Callable[[int], T], indices: Sequence[int], sender: Connection) -> None:
    """In the child: load one image after another and send each at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    # A fork has the other end of the pipe too, and would never hear that nobody reads any more.
    end_with_main_process()
    import torch

    torch.set_num_threads(1)  # a forked process must not use its parent's threads
    limit_memory()
    register_formats()  # the parent decodes nothing itself
    for index in indices:
        sender.send(_packed(load(index)))
    sender.close()
    os._exit(0)  # past the parent's exit handlers


def _packed(result: Any) -> Any:
    """As numpy: a tensor would be shared through a file that dies with the child."""
    import torch

    return (
        (replace(result, pixels=torch.empty(0)), result.pixels.numpy())
        if isinstance(result, Sample)
        else result
    )


def _unpacked(message: Any) -> Any:
    import torch

    if not isinstance(message, tuple):
        return message
    sample, pixels = message
    return replace(sample, pixels=torch.from_numpy(pixels))


def _lost(index: int, exit_code: int | None) -> Failure:
    if exit_code == -signal.SIGKILL:
        return Failure(
            index, "out_of_memory", "the system ended the decoder, most likely for want of memory"
        )
    how = (
        f"by {signal.Signals(-exit_code).name}"
        if exit_code and exit_code < 0
        else f"with exit code {exit_code}"
    )
    return Failure(index, "decoder_crash", f"the decoder's process ended {how}")
