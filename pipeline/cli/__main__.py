"""The command as a process of its own: `label-images`, or `python -m pipeline.cli`."""

import atexit
import os
import sys
import threading

from .commands import main


def start() -> None:
    """Run the command, and end the process with its exit code."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            _leave(end.code or 0)
        raise


def _leave(exit_code: int) -> None:
    """End the process as Python does, but for taking apart all that torch and OpenVINO made, which
    takes 0.2 seconds. Return where Python has more to say, as of a pipe that nobody reads.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as where cron closed it
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(exit_code)


if __name__ == "__main__":
    start()
