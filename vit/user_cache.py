"""Where this project keeps what it would otherwise make again, for one user."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """$XDG_CACHE_HOME/label-images/NAME, by default below ~/.cache. Need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "label-images" / name
