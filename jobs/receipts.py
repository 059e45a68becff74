"""Receipts: one small JSON a finished shard, written after its part.

A shard counts as done when its receipt proves its part: same plan, same rows, same bytes. A
receipt or part that does not is as good as none, and the shard is labelled again.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from jobs.storage.object_store import AnyPath

from .records import read_record, write_record

RECEIPT_VERSION = 3  # 2 knew the part of the labels alone
LABELS = "labels"  # the product that every job makes


@dataclass(frozen=True)
class Provenance:
    """What made a shard's labels, beside the model: the numbers' precision, the device, libraries."""

    precision: str
    device: str
    libraries: dict[str, str]


# Of shards that a version before this labelled, whose receipts do not say.
UNKNOWN = Provenance("unknown", "unknown", {})


@dataclass(frozen=True)
class Receipt:
    plan_id: str
    shard: int
    rows: int
    errors: dict[str, int]  # failed images by code
    parts: dict[str, str]  # the sha256 of the shard's part, by product
    run_id: str
    made_by: Provenance | None = None  # not said by receipts of before
    reused: int = 0  # labelled rows that were taken from other images with the same bytes


def write_receipt(path: AnyPath, receipt: Receipt) -> None:
    write_record(path, RECEIPT_VERSION, asdict(receipt))


def read_receipt(path: AnyPath) -> Receipt | None:
    """Read a receipt, of this version or the one before; None when it is missing or damaged."""
    values = read_record(path, RECEIPT_VERSION)
    if values is None and (values := read_record(path, 2)):
        values["parts"] = {LABELS: values.pop("part_sha256", "")}
    if values is None:
        return None
    try:
        made_by = values.pop("made_by", None)
        return Receipt(**values, made_by=Provenance(**made_by) if made_by else None)
    except TypeError:
        return None


def proves(
    receipt: Receipt | None, plan_id: str, shard: int, rows: int, parts: dict[str, AnyPath]
) -> bool:
    """Whether a receipt shows that `parts`, by product, are this plan's shard, whole."""
    return (
        receipt is not None
        and (receipt.plan_id, receipt.shard, receipt.rows) == (plan_id, shard, rows)
        and receipt.parts.keys() == parts.keys()
        and all(
            part.is_file() and receipt.parts[product] == sha256_file(part)
            for product, part in parts.items()
        )
    )


def count_failures(receipts: Iterable[Receipt]) -> dict[str, int]:
    """The failed images of finished shards, by error code."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.errors)
    return dict(sorted(total.items()))


def sha256_file(path: AnyPath) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
