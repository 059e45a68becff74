"""What ends a command early -> a message and an exit code."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jobs.errors import JobError
from pipeline.console import Console, shown
from pipeline.errors import Interrupted, LabelImagesError, exit_code_of, is_of_the_machine
from vit.errors import ModelError

_NO_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
_UNMAPPED = re.compile(
    r"failed to map segment|cannot allocate memory|cannot open shared object", re.I
)


@contextmanager
def at_work(quiet: bool = False, log_json: bool = False, debug: bool = False) -> Iterator[Console]:
    """Show what a command says while it works, and how it ends: what a user can cause becomes a
    message and an exit code. Signals become Interrupted.
    """
    with (
        _downloads_shown(not quiet and not log_json),
        shown(quiet, log_json, debug) as console,
        _errors_as_exit_codes(console, log_json),
    ):
        yield console


@contextmanager
def _downloads_shown(is_shown: bool) -> Iterator[None]:
    """Let the Hub's client show its bar, which it does on a terminal alone, or not."""
    is_ours = not is_shown and _NO_BARS not in os.environ
    if is_ours:
        os.environ[_NO_BARS] = "1"
    try:
        yield
    finally:
        if is_ours:
            del os.environ[_NO_BARS]


@contextmanager
def _errors_as_exit_codes(console: Console, log_json: bool) -> Iterator[None]:

    def interrupt(signal_number: int, frame: object) -> None:
        # A second signal must not find the way out blocked by the first.
        signal.signal(signal_number, signal.SIG_DFL)
        # The same signal ends the workers, and torch's handler would raise an error for each.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Interrupted(signal_number)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except Interrupted as interrupted:
        message = "interrupted; finished shards are kept, run the same command to go on"
        console.warn("interrupted", message, {"exit_code": interrupted.exit_code})
        sys.exit(interrupted.exit_code)
    except (LabelImagesError, ModelError, JobError) as error:
        fail(console, str(error), exit_code_of(error))
    except BrokenPipeError:  # `label-images ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not _is_of_the_machine(error):
            if log_json:  # also of a fault of ours each line is JSON
                what = f"a fault of label-images: {type(error).__name__}: {error}"
                console.error(what, 1, is_our_fault=True)
                sys.exit(1)
            raise  # a fault of ours: with its traceback, and exit code 1
        fail(console, _complaint(error), 5 if isinstance(error, OSError) else 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(console: Console, message: str, exit_code: int) -> NoReturn:
    """End the command with a message."""
    console.error(message, exit_code)
    sys.exit(exit_code)


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, OSError):
        return is_of_the_machine(error)
    # Under a limit on memory libraries cannot be mapped, which Python calls an ImportError.
    return isinstance(error, MemoryError) or (
        isinstance(error, ImportError) and _UNMAPPED.search(str(error)) is not None
    )


def _complaint(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        what = f"{error.strerror or error}{where}"
        return f"{what}; what was finished is kept: mend it, then the same command again"
    reason = str(error) or "out of memory"
    return (
        f"this machine cannot do it ({reason}): too little memory (ulimit -v), or a broken "
        "installation"
    )
