"""State as JSON that proves itself: a version, and a digest over all the rest of it.

A record that is missing, cut, edited or of another version counts as none: what it would say is
computed again.
"""

import hashlib
import json
from typing import Any

from jobs.storage.atomic import read_json, write_json
from jobs.storage.object_store import AnyPath


def canonical_sha256(value: Any) -> str:
    """sha256 of a value as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def write_record(path: AnyPath, version: int, values: dict[str, Any]) -> None:
    record = {"version": version, **values}
    write_json(path, record | {"sha256": canonical_sha256(record)})


def read_record(path: AnyPath, version: int) -> dict[str, Any] | None:
    """Read the values of a record; None when it does not prove itself or has another version."""
    record = read_json(path)
    if (
        record is None
        or record.pop("sha256", None) != canonical_sha256(record)
        or record.pop("version") != version
    ):
        return None
    return record


def record_version(path: AnyPath) -> int | None:
    """The version a record says it has, whole or not; None without one."""
    version = (read_json(path) or {}).get("version")
    return version if isinstance(version, int) else None
