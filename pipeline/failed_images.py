"""The images of a job that failed: which, why, and which of them had not failed before."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.manifest import Manifest
from jobs.receipts import Receipt
from jobs.storage.arrow import read_parquet

from .failures import AWAY

# How many of them a run names, and how many run.json keeps.
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

    `some` are the first of them, the new ones first. `away` counts images whose file could not be
    had and that had a label before this job, by the (root, folder) they are in: a folder that was a
    mount point, or "". `away_shards` are the shards those are in.
    """

    errors: dict[str, int] = field(default_factory=dict)
    again: int = 0
    some: list[FailedImage] = field(default_factory=list)
    away: dict[tuple[str, str], int] = field(default_factory=dict)
    away_shards: list[int] = field(default_factory=list)

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
    errors, again = Counter[str](), 0
    away, away_shards = Counter[tuple[str, str]](), list[int]()
    new_ones, old_ones = list[FailedImage](), list[FailedImage]()
    pending = job.pending()
    mounts = mounts_of(manifest)
    # With --restart all images are new to the plan, and yet they replace a table's labels.
    had_label = pa.array(
        ["stale", "changed", "incomplete"]
        + (["new"] if manifest.settings.get("replaces_all") else [])
    )
    for shard, receipt in receipts.items():
        if not receipt.errors:
            continue
        columns = ["root", "path", "status", "error_code", "error_detail"]
        part = read_parquet(job.part_path(shard), columns=columns)
        # A part's rows are in index order, and so are the plan's.
        action = pending["action"].slice(shard * manifest.shard_size, len(part))
        failed = part.append_column("action", action.combine_chunks()).filter(
            pc.equal(part["status"], "error")
        )
        errors.update(failed["error_code"].to_pylist())
        is_old = pc.equal(failed["action"], "retry")
        again += int(pc.sum(is_old).as_py() or 0)
        _gather(failed.filter(pc.invert(is_old)), new_ones, False)
        _gather(failed.filter(is_old), old_ones, True)
        is_away = pc.is_in(failed["error_code"], value_set=pa.array(AWAY))
        is_lost = pc.and_(pc.is_in(failed["action"], value_set=had_label), is_away)
        lost = failed.filter(is_lost).select(["root", "path"]).to_pylist()
        away.update(_mount_of(row["root"], row["path"], mounts) for row in lost)
        away_shards += [shard] if lost else []
    some = [*new_ones, *old_ones][:KEPT]
    return Failures(dict(sorted(errors.items())), again, some, dict(away), away_shards)


def _gather(failed: pa.Table, images: list[FailedImage], failed_before: bool) -> None:
    for row in failed.slice(0, KEPT - len(images)).to_pylist():
        detail = row["error_detail"] or ""
        images.append(
            FailedImage(row["root"], row["path"], row["error_code"], detail, failed_before)
        )


def mounts_of(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """The mount points, as (root, folder), that were there when a job was planned."""
    return tuple((root, folder) for root, folder in manifest.settings.get("mounts", []))


def _mount_of(root: str, path: str, mounts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The mount point that a path is in, of those below its root; the root itself where there is
    none.
    """
    above = [folder for of, folder in mounts if of == root and path.startswith(f"{folder}/")]
    return root, max(above, key=len, default="")
