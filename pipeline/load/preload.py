"""What workers need, imported by the server that forks them (processes.py)."""

import gc

from pipeline.garbage import no_collection

with no_collection():
    from . import crew, isolation  # noqa: F401

gc.freeze()  # no worker looks through it, and thereby copies it
