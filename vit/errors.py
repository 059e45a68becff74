"""ModelError, what this package raises for a model (an image's Unreadable is in pixels.py)."""

import os
from pathlib import Path


class ModelError(Exception):
    """A model that cannot be found, read or trusted; the message says what to do about it."""


def no_permission(path: Path) -> ModelError:
    """The error for a file or folder that is there and that this user may not read."""
    right = "a+rx" if os.path.isdir(path) else "a+r"
    return ModelError(
        f"{path} may not be read by this user (permission denied); its owner can allow it: chmod "
        f"{right} {path}, and a+x for the folders above it"
    )
