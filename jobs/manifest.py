"""Manifest, the frozen description of one job, and Fingerprint, all that decides a label.

The manifest is a record (records.py). Two runs with equal fingerprints give the same image the same
row; a mismatch is put into words, field by field. Batch size, workers, device and precision are
recorded in the settings but are not part of the fingerprint.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.storage.object_store import AnyPath

from .receipts import LABELS
from .records import canonical_sha256, read_record, write_record

MANIFEST_VERSION = 4  # 3 knew no roots that moved; 2 the labels as the only product
_READ = (MANIFEST_VERSION, 3, 2)

# The fields of each half of a fingerprint.
_FEATURES = ("weights_sha256", "architecture", "preprocess", "decode_rules")
_HEAD = ("weights_sha256", "temperature", "labels_sha256", "top_k", "activation")
# Of a head of its own, in place of the weights, which are the backbone's alone.
_OWN_HEAD = ("head_sha256", *_HEAD[1:])
# What a field is where it is not written: it came later, and every row of before was made so.
_AS_BEFORE = {"activation": "softmax", "head_sha256": None}
# What a field is called where its own name does not say it.
_WORDS = {
    "weights_sha256": "the weights",
    "head_sha256": "the head",
    "labels_sha256": "the class names",
}


@dataclass(frozen=True)
class Fingerprint:
    """What changes results: change one of these and every label is stale.

    It has two halves: what decides an image's features (the backbone's part), and what makes scores
    and labels of them (the head's). Where `features_digest` is the same, features that were kept
    need no image decoded again.

    The fields stay flat, and `digest` is over them as ever, because the rows of every table carry
    it: with a nested record each table there is would be labelled again for nothing. A file of
    weights that holds backbone and head alike has its digest in both halves, and halves that are
    equal are surely so. `head_sha256` is of a head of its own: `weights_sha256` is
    then of the backbone's file and in its half alone. It and `activation` came later, and as every
    head was before (inside, and a softmax) they are left out of record and digest.
    """

    weights_sha256: str
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    temperature: float
    labels_sha256: str
    top_k: int
    decode_rules: str
    activation: str = "softmax"
    head_sha256: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON, but for those that are as they were before there was a field."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _AS_BEFORE or value != _AS_BEFORE[name]
        }

    @property
    def digest(self) -> str:
        """sha256 over the fields as canonical JSON."""
        return canonical_sha256(self.to_record())

    @property
    def features_fields(self) -> dict[str, Any]:
        """What decides an image's features."""
        return {name: getattr(self, name) for name in _FEATURES}

    @property
    def features_digest(self) -> str:
        """sha256 over those; equal digests, equal features."""
        return canonical_sha256(self.features_fields)

    @property
    def head_digest(self) -> str:
        """sha256 over what makes scores and labels of features."""
        record = self.to_record()
        names = _HEAD if self.head_sha256 is None else _OWN_HEAD
        return canonical_sha256({name: record[name] for name in names if name in record})

    def differences(
        self, earlier: "Fingerprint", known: Mapping[str, str] | None = None
    ) -> list[str]:
        """Name each field in which this differs from an earlier one, such as `top_k (was 5, is
        10)`. `known` is what to say of a field, by its name, in place of two digests.
        """
        known = known or {}
        found = []
        for name in asdict(self):
            old, new = getattr(earlier, name), getattr(self, name)
            if isinstance(new, dict) and isinstance(old, dict):
                found += [
                    f"{name}.{key} (was {old.get(key)}, is {new.get(key)})"
                    for key in sorted(old.keys() | new.keys())
                    if old.get(key) != new.get(key)
                ]
            elif old != new:
                how = known.get(name) or f"was {_short(old)}, is {_short(new)}"
                found.append(f"{_WORDS.get(name, name)} ({how})")
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
    found: found, new, changed, stale, retry, carried, gone. `digests` are the sha256 of the plan's
    files, filled in as they are written. `products` are the tables made of each image, by name;
    `bases` is for those beside the labels what `base_table` is for them. `rescores`: the kept rows
    get labels anew, from their embeddings. `moved` are the roots of kept rows that get another name.
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
    digests: dict[str, str] = field(default_factory=dict)
    products: list[str] = field(default_factory=lambda: [LABELS])
    bases: dict[str, str | None] = field(default_factory=dict)
    rescores: bool = False
    moved: dict[str, str] = field(default_factory=dict)

    @property
    def n_shards(self) -> int:
        return -(-self.n_images // self.shard_size)

    def shard_rows(self, shard: int) -> int:
        """Images in a shard; only the last may be short."""
        return min(self.shard_size, self.n_images - shard * self.shard_size)

    def write(self, path: AnyPath) -> None:
        values = asdict(self) | {"fingerprint": self.fingerprint.to_record()}
        write_record(path, MANIFEST_VERSION, values)

    @classmethod
    def read(cls, path: AnyPath) -> "Manifest | None":
        """Read a manifest, of this version or one before; None when missing or damaged."""
        values = next(filter(None, (read_record(path, version) for version in _READ)), None)
        fingerprint = Fingerprint.from_record(values.get("fingerprint")) if values else None
        if values is None or fingerprint is None:
            return None
        try:
            return cls(**{**values, "fingerprint": fingerprint})
        except TypeError:
            return None


def _short(value: Any) -> str:
    text = "that of the weights" if value is None else str(value)
    return text[:12] + "..." if len(text) > 40 else text


def _digest(prompts: tuple[str, ...]) -> str:
    """Enough of a sha256 to tell a word's prompts from those of before."""
    return canonical_sha256(prompts)[:16]


@dataclass(frozen=True)
class ModelIdentity:
    """`label_ids` (such as WordNet ids) are empty or as many as `labels`; `image_size` is in
    pixels.

    `address` finds the model again from any working folder, also where its `name` does not. `notes`
    say what was taken for granted where its files do not say it. `prompts` are those of each label,
    where the labels are the user's words; else empty.
    """

    name: str
    address: str
    labels: tuple[str, ...]
    label_ids: tuple[str, ...]
    image_size: int
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    prompts: tuple[tuple[str, ...], ...] = ()

    def to_record(self) -> dict[str, Any]:
        return asdict(self) | {"fingerprint": self.fingerprint.to_record()}

    @classmethod
    def from_record(cls, record: Any) -> "ModelIdentity | None":
        """Rebuild what `to_record` gave, also from JSON; None for what does not fit."""
        try:
            texts = {name: tuple(record[name]) for name in ("labels", "label_ids", "notes")}
            fingerprint = Fingerprint.from_record(record["fingerprint"])
            if fingerprint is None:
                return None
            prompts = tuple(tuple(each) for each in record.get("prompts", ()))
            return cls(**{**record, **texts, "prompts": prompts, "fingerprint": fingerprint})
        except (KeyError, TypeError):
            return None

    def describe(self) -> str:
        return (
            f"model: {self.name}, {len(self.labels):,} class{'es' * (len(self.labels) != 1)}, {self.image_size} x "
            f"{self.image_size} pixels"
        )

    def classes(self) -> list[dict[str, Any]]:
        """The classes as a table keeps them; of prompts, of which a word may have a hundred, a
        digest.
        """
        return [
            {"class_id": class_id, "label": label}
            | ({"id": self.label_ids[class_id]} if self.label_ids else {})
            | ({"prompts_sha256": _digest(self.prompts[class_id])} if self.prompts else {})
            for class_id, label in enumerate(self.labels)
        ]
