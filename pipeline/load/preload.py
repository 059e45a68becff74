"""What workers need, imported by the server that forks them (processes.py).

Nothing looks for garbage meanwhile, which takes a quarter of the time, nor among what is imported
ever after.
"""

import gc

gc.disable()

from . import crew, isolation  # noqa: E402, F401

gc.freeze()
gc.enable()
