"""The dataflow, from folders of photos to a Parquet table of labels.

For programs: `from pipeline import Settings, Table, label_images, word_vectors` (library.py).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library import Outcome, Settings, Table, label_images, word_vectors

__all__ = ["Outcome", "Settings", "Table", "label_images", "word_vectors"]


def __getattr__(name: str) -> Any:
    # Only when asked for: the command's --help imports this package and must not wait for torch.
    if name in __all__:
        from . import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
