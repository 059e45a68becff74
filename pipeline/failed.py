"""The images of a job that failed: which, why, and which of them are news."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.receipts import Receipt
from jobs.storage.object_store import as_arrow

# So many are named by a run, and kept in run.json.
SHOWN, KEPT = 20, 100


@dataclass(frozen=True)
class FailedImage:
    root: str
    path: str
    error_code: str
    error_detail: str
    failed_before: bool

    def __str__(self) -> str:
        again = " again" if self.failed_before else ""
        return (
            f"failed{again}: {self.root.rstrip('/')}/{self.path}: {self.error_code}: "
            f"{self.error_detail}"
        )


@dataclass(frozen=True)
class Failures:
    """`errors` counts a job's failed images by code; `again` those that had failed before, and were
    only tried again.

    `some` are the first of them, the new ones first.
    """

    errors: dict[str, int] = field(default_factory=dict)
    again: int = 0
    some: list[FailedImage] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.errors.values())

    @property
    def new(self) -> int:
        return self.total - self.again

    def to_record(self) -> list[dict[str, Any]]:
        return [asdict(image) for image in self.some]


def read_failures(job: Job, manifest: Manifest, receipts: dict[int, Receipt]) -> Failures:
    """Read the failures of a labelled job from its parts; only shards whose receipts count some are
    opened.
    """
    errors, again, new_ones, old_ones = Counter[str](), 0, list[FailedImage](), list[FailedImage]()
    pending = job.pending()
    for shard, receipt in receipts.items():
        if not receipt.errors:
            continue
        columns = ["root", "path", "status", "error_code", "error_detail"]
        part = pq.read_table(as_arrow(job.part_path(shard)), columns=columns, partitioning=None)
        # A part's rows are in index order, and so are the plan's.
        action = pending["action"].slice(shard * manifest.shard_size, len(part))
        failed = part.append_column("action", action.combine_chunks()).filter(
            pc.equal(part["status"], "error")
        )
        errors.update(failed["error_code"].to_pylist())
        again += int(pc.sum(pc.equal(failed["action"], "retry")).as_py() or 0)
        _gather(failed, new_ones, old_ones)
    return Failures(dict(sorted(errors.items())), again, [*new_ones, *old_ones][:KEPT])


def _gather(failed: pa.Table, new_ones: list[FailedImage], old_ones: list[FailedImage]) -> None:
    if len(new_ones) >= KEPT:
        return
    for row in failed.slice(0, 4 * KEPT).to_pylist():
        is_old = row["action"] == "retry"
        images = old_ones if is_old else new_ones
        if len(images) < KEPT:
            images.append(
                FailedImage(
                    row["root"], row["path"], row["error_code"], row["error_detail"] or "", is_old
                )
            )
