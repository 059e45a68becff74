"""What ends a command early -> a message and an exit code."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jobs.errors import JobError
from pipeline.console import Console
from pipeline.errors import Interrupted, LabelImagesError, exit_code_of, is_of_the_machine
from vit.errors import ModelError

_UNMAPPED = re.compile(
    r"failed to map segment|cannot allocate memory|cannot open shared object", re.I
)


@contextmanager
def errors_as_exit_codes(console: Console | None = None) -> Iterator[None]:
    """Turn what a user can cause into a message and an exit code, and signals into Interrupted."""
    console = console or Console()

    def interrupt(signal_number: int, frame: object) -> None:
        # A second signal must not find the way out blocked by the first.
        signal.signal(signal_number, signal.SIG_DFL)
        # Workers that the same signal ended are no news; torch's handler would raise for each.
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
            if console.log_json:  # also of a fault of ours each line is JSON
                trace = {"traceback": traceback.format_exc()}
                what = f"a fault of label-images: {type(error).__name__}: {error}"
                console.error(what, 1, trace)
                sys.exit(1)
            raise  # a fault of ours: with its traceback, and exit code 1
        fail(console, _complaint(error), 5 if isinstance(error, OSError) else 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(console: Console, message: str, exit_code: int) -> NoReturn:
    """End the command with a message; after the traceback, where --debug asks for it."""
    trace = sys.exc_info()[0] is not None and console.debug
    console.error(message, exit_code, {"traceback": traceback.format_exc()} if trace else None)
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
