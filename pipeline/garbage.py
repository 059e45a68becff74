"""Garbage collection, where it costs time and finds nothing."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Look for no garbage meanwhile, and take what is there at the end for old.

    For very many objects that stay, or have no cycles: the collector would look through them again
    and again. torch's import makes hundreds of thousands, and if they counted as new, the next three
    collections, one for each generation, would still go through all of them: half a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():  # what somebody froze stays so
                gc.freeze()
                gc.unfreeze()  # into the oldest generation, all at once
            gc.enable()
