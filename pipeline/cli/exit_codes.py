"""What ends a command early -> a message and an exit code."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from jobs.errors import JobError
from pipeline.console import Console
from pipeline.errors import Interrupted, LabelImagesError, exit_code_of
from vit.errors import ModelError


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
    except (ImportError, MemoryError) as error:
        reason = str(error) or "out of memory"
        message = (
            f"this machine cannot do it ({reason}): too little memory (ulimit -v), or a broken "
            f"installation"
        )
        fail(console, message, 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        what = f"{error.strerror or error}{where}"
        fail(console, f"{what}; what was finished is kept: mend it, then the same command again", 5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(console: Console, message: str, exit_code: int) -> NoReturn:
    console.error(message, exit_code)
    sys.exit(exit_code)
