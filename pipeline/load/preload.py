"""What workers need, imported by the server that forks them (processes.py)."""

import gc

from .processes import quick_imports

with quick_imports():
    from . import crew, isolation  # noqa: F401

gc.freeze()  # no worker looks through it, and thereby copies it
