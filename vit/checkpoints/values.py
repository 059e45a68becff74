"""What the config files of all origins have in common: JSON, squares, one value a channel, keys
nobody knows.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vit.errors import ModelError, no_permission


def read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise no_permission(path) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} should hold a JSON object")
    return config


def one_side(size: Any) -> int:
    """Return the side of a square given as 224, [224, 224] or {"height": 224, "width": 224}."""
    if isinstance(size, int):
        return size
    sides = set(size.values()) if isinstance(size, dict) else set(size)
    if len(sides) != 1:
        raise ModelError(f"only square images and patches are supported, not {size}")
    return int(sides.pop())


def per_channel(values: Any, in_chans: int) -> tuple[float, ...]:
    """Repeat one value for all channels where it is the same for each; else leave it to be checked."""
    values = (values,) if isinstance(values, int | float) else tuple(values)
    return values[:1] * in_chans if len(set(values)) == 1 else values


def refuse_unknown(what: str, config: dict[str, Any], known: Collection[str]) -> None:
    """Refuse a key nobody here knows: it may change pixels or scores, and labels would be wrong
    without a word.

    Null is what every origin writes for "not given".
    """
    unknown = {
        name: value for name, value in config.items() if name not in known and value is not None
    }
    if unknown:
        name, value = next(iter(unknown.items()))
        others = f" (and {', '.join(list(unknown)[1:4])})" if len(unknown) > 1 else ""
        raise ModelError(
            f"{what} says {name}={value!r}{others}, which this tool does not know and which may "
            "change the labels; where you know that it does not, take it out of a copy of the file"
        )
