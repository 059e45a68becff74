"""Garbage collection, where it costs time and finds nothing."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 100_000  # objects; to go through them takes a tenth of a second or so


@contextmanager
def no_collection() -> Iterator[None]:
    """Look for no garbage meanwhile, and take very many new objects for old ones at the end.

    For objects that stay, or have no cycles: the collector would look through them again and again.
    torch's import makes hundreds of thousands, and while they count as new the next collections, one
    for each generation, go through all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            has_many = gc.get_count()[0] > _MANY
            if has_many and not gc.get_freeze_count():  # what somebody froze stays so
                gc.freeze()
                gc.unfreeze()  # into the oldest generation, all at once
            gc.enable()
