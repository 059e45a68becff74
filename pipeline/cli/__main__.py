"""The command as a process of its own: `label-images`, or `python -m pipeline.cli`."""

import atexit
import gc

from .commands import main


def start() -> None:
    # When Python ends it looks through all there is for garbage: half a second, once torch is there.
    # Here and not in commands.py, which programs import that have more to clean up.
    atexit.register(gc.freeze)
    main()


if __name__ == "__main__":
    start()
