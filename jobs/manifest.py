"""Manifest, the frozen description of one job, and Fingerprint, all that decides a label.

The manifest is JSON with a version. Two runs with equal fingerprints give the same image the same
row; a mismatch is put into words, field by field. Batch size, workers, device and precision are
recorded in the settings but are not part of the fingerprint.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Fingerprint:
    """What changes results: change one of these and every label is stale."""

    weights_sha256: str
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    temperature: float
    labels_sha256: str
    top_k: int
    decode_rules: str

    @property
    def digest(self) -> str:
        """sha256 over the fields as canonical JSON."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, earlier: "Fingerprint") -> list[str]:
        """Name each field in which this differs from an earlier one, such as `top_k (was 5, is 10)`."""
        found = []
        for field in fields(self):
            old, new = getattr(earlier, field.name), getattr(self, field.name)
            if isinstance(new, dict) and isinstance(old, dict):
                found += [
                    f"{field.name}.{key} (was {old.get(key)}, is {new.get(key)})"
                    for key in sorted(old.keys() | new.keys())
                    if old.get(key) != new.get(key)
                ]
            elif old != new:
                found.append(f"{field.name} (was {_short(old)}, is {_short(new)})")
        return found

    @classmethod
    def from_record(cls, record: Any) -> "Fingerprint | None":
        """Rebuild a fingerprint from JSON; None when it was written by a version with other fields."""
        try:
            return cls(**record)
        except TypeError:
            return None


@dataclass(frozen=True)
class Manifest:
    """One job: which images, which model, how it was cut into shards.

    `plan_id` names the plan; receipts and the finished table carry it. `base_table` is the
    plan_id of the table whose rows are carried over, None without one. `counts` is what the plan
    found: found, new, changed, stale, retry, carried, gone.
    """

    plan_id: str
    tool_version: str
    created_at: str
    selection: dict[str, Any]  # what decided which files were found: roots, include, exclude ...
    base_table: str | None
    n_images: int  # to be labelled by this job
    shard_size: int
    counts: dict[str, int]
    model: str
    fingerprint: Fingerprint
    settings: dict[str, Any]

    @property
    def n_shards(self) -> int:
        return -(-self.n_images // self.shard_size)

    def shard_rows(self, shard: int) -> int:
        """Images in a shard; only the last may be short."""
        return min(self.shard_size, self.n_images - shard * self.shard_size)

    def to_record(self) -> dict[str, Any]:
        return {"version": MANIFEST_VERSION, **asdict(self)}

    @classmethod
    def from_record(cls, record: dict[str, Any] | None) -> "Manifest | None":
        """Rebuild a manifest from JSON; None when it is damaged or of another version."""
        if not record or record.get("version") != MANIFEST_VERSION:
            return None
        values = {name: value for name, value in record.items() if name != "version"}
        fingerprint = Fingerprint.from_record(values.get("fingerprint"))
        if fingerprint is None:
            return None
        try:
            return cls(**{**values, "fingerprint": fingerprint})
        except TypeError:
            return None


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 40 else text
