"""What ends a command early -> a message and an exit code."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from jobs.errors import JobError, JobLocked
from vit.errors import ModelError

from .errors import Interrupted, LabelImagesError
from .names import printable


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn what a user can cause into a message and an exit code, and signals into Interrupted."""

    def interrupt(signal_number: int, frame: object) -> None:
        # A second signal must not find the way out blocked by the first.
        signal.signal(signal_number, signal.SIG_DFL)
        # Workers that the same signal ended are no news; torch's handler would raise for each.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Interrupted(signal_number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Interrupted as interrupted:
        click.echo("interrupted; finished shards are kept, run the same command to go on", err=True)
        sys.exit(interrupted.exit_code)
    except LabelImagesError as error:
        fail(str(error), error.exit_code)
    except ModelError as error:
        fail(str(error), 2)
    except JobLocked as error:
        fail(str(error), 4)
    except JobError as error:
        fail(str(error), 5)
    except BrokenPipeError:  # `label-images ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImportError, MemoryError) as error:
        reason = str(error) or "out of memory"
        fail(f"this machine cannot do it ({reason}): too little memory (ulimit -v), or a broken installation", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}; what was finished is kept: mend it, then the same command again", 5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(message: str, exit_code: int) -> None:
    click.echo(f"label-images: {printable(message)}", err=True)
    sys.exit(exit_code)
