"""The command as a process of its own: `label-images`, or `python -m pipeline.cli`."""

import atexit
import os
import sys


def start() -> None:
    """Run the command, and end the process with its exit code."""
    exit_code: int | None = None

    def leave() -> None:
        """End at once: to take apart all that torch and OpenVINO made takes a quarter of a second."""
        if exit_code is None:
            return  # Python has more to say of such an end
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # as where cron closed it
                    stream.flush()
        except (OSError, ValueError):
            return  # as it has of a pipe that nobody reads
        os._exit(exit_code)

    # Registered first and so called last: whoever else has something to clean up has done it.
    atexit.register(leave)
    from .commands import main

    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            exit_code = end.code or 0
        raise


if __name__ == "__main__":
    start()
