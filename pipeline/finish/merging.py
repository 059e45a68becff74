"""The end of a run: rows carried over and the parts of its shards become the products, each switched
by one rename.

The table of labels is the last: it carries the plan's id, and with that the job is done. The others
are found switched already when a crash came between.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.moved import move_rows
from jobs.receipts import UNKNOWN, Provenance, Receipt
from jobs.records import canonical_sha256
from jobs.storage.arrow import read_parquet
from jobs.storage.object_store import REQUESTS_AT_ONCE
from pipeline.find.scan import root_of
from pipeline.label.labeller import Labeller, Run
from pipeline.label.rescore import Rescorer
from pipeline.outcome import now_text
from pipeline.path_names import display
from pipeline.plan.choice import ModelChoice
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.labels import LABELS
from pipeline.table.merge import Merge, Parts, write_merged
from pipeline.table.partitioned import write_dataset
from pipeline.table.product import Product
from pipeline.table.record import PRODUCTS, TableRecord
from pipeline.table.table import read_index, read_record


@dataclass(frozen=True)
class _Made:
    """What made the shards of a job, and a digest over all that they are. `has_of_before`: some of
    their rows may have been taken from the table that the job began with.
    """

    by: list[Provenance]
    receipts_sha256: str
    has_of_before: bool


def _made(receipts: Iterable[Receipt], may_take: bool) -> _Made:
    by, parts, n_reused = list[Provenance](), [], 0
    for receipt in receipts:
        if receipt.reused < receipt.rows:  # else nothing was computed for it
            by.append(receipt.made_by or UNKNOWN)
        parts.append([receipt.shard, receipt.parts])
        n_reused += receipt.reused
    return _Made(by, canonical_sha256(parts), may_take and n_reused > 0)


def merge(run: Run, labeller: Labeller, receipts: Iterable[Receipt]) -> dict[str, int]:
    """Make the products of carried-over rows and parts; return the failed rows by error code."""
    run.job.check_held()
    made = _made(receipts, run.job.has_donors(run.manifest))
    for name, job in run.beside.items():
        _merge_beside(run, PRODUCTS[name], job, made)
    carry = _carry(run)
    if run.manifest.rescores:
        place = run.beside[EMBEDDINGS.name].out
        rescorer = Rescorer(run, labeller, place, _places(run, EMBEDDINGS).of_kept)
        moved, carry = carry, lambda kept: rescorer(moved(kept) if moved else kept)
    return _merge_labels(run, made, carry)


def _carry(run: Run) -> Callable[[pa.Table], pa.Table] | None:
    """What becomes of the rows of roots that moved; None where none has."""
    return partial(move_rows, moved=run.manifest.moved) if run.manifest.moved else None


def _merge_labels(
    run: Run, made: _Made, carry: Callable[[pa.Table], pa.Table] | None
) -> dict[str, int]:
    job, manifest = run.job, run.manifest
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    before = read_record(base) if base is not None and (len(kept) or made.has_of_before) else None
    record = _record(run, LABELS, before, made)
    positions = job.pending()["position"].to_numpy()
    whole = Merge(kept, positions, _parts(run, LABELS), carry=carry)
    classes = run.identity.classes()
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, classes)
    return write_merged(job.out, base, whole, record, classes, job.check_held)


def _merge_beside(run: Run, product: Product, job: Job, made: _Made) -> None:
    """Bring a product beside the labels up to date: it has a row for each labelled image, but for
    kept ones that had none.
    """
    before = read_record(job.out, product)
    if before is not None and before.plan_id == run.manifest.plan_id:
        return
    places, rows = _places(run, product), run.job.kept(product.name).drop_null().to_numpy()
    whole = Merge(rows, places.of_new, _parts(run, product), places.labelled, _carry(run))
    record = _record(run, product, before if len(rows) or made.has_of_before else None, made)
    write_dataset(job, read_index(job.out) if len(rows) else None, whole, record, [])


@dataclass(frozen=True)
class _Places:
    """Where rows are in a product beside the labels, as the merge leaves it: `of_kept` those of kept
    rows, ascending, and `of_new` those of the images `labelled` now, by their index.
    """

    of_kept: np.ndarray
    of_new: np.ndarray
    labelled: np.ndarray


def _places(run: Run, product: Product) -> _Places:
    kept = run.job.kept(product.name).is_valid().to_numpy(zero_copy_only=False)
    positions = run.job.pending()["position"].to_numpy()
    labelled = np.flatnonzero(_is_labelled(run))
    # Of each row of the table of labels, whether there is one here: so many stand before each.
    is_kept = np.ones(len(kept) + len(positions), np.bool_)
    is_kept[positions] = False
    is_here = np.zeros(len(is_kept), np.bool_)
    is_here[is_kept] = kept
    is_here[positions[labelled]] = True
    places = np.cumsum(is_here) - 1
    return _Places(places[is_kept][kept], places[positions[labelled]], labelled)


def _is_labelled(run: Run) -> np.ndarray:
    """Of each image of the job by its index, whether it has a label."""

    def read(shard: int) -> np.ndarray:
        part = read_parquet(run.job.part_path(shard), ["status"])
        return pc.equal(part["status"], "ok").to_numpy()

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        return np.concatenate(
            [np.array([], np.bool_), *threads.map(read, range(run.manifest.n_shards))]
        )


def _parts(run: Run, product: Product) -> Parts:
    paths = [run.job.part_path(shard, product.name) for shard in range(run.manifest.n_shards)]
    return Parts(product, paths, run.manifest.shard_size)


def _record(run: Run, product: Product, before: TableRecord | None, made: _Made) -> TableRecord:
    """What the new table says of itself; `before` is of the one whose rows are carried over."""
    manifest = run.manifest
    made_by = before.made_by.copy() if before else []
    for maker in made.by:
        if maker not in made_by:
            made_by.append(maker)
    fields = product.decided_by(manifest.fingerprint)
    is_labels = product is LABELS
    return TableRecord(
        plan_id=manifest.plan_id,
        created_at=now_text(),
        run_id=run.id,
        tool_version=version("label-images"),
        model=run.identity.name,
        fingerprint=canonical_sha256(fields),
        fingerprint_fields=fields,
        made_by=made_by,
        roots=[display(root) for root in manifest.selection["roots"]],
        selection=run.settings.selection.to_record(),
        choice=ModelChoice.of(run.settings, run.identity.address).to_record(),
        mounts=[(root, folder) for root, folder in manifest.settings.get("mounts", [])],
        product_name=product.name,
        labels_at=None if is_labels else root_of(run.job.out),
        beside={name: root_of(at.out) for name, at in run.beside.items()} if is_labels else {},
        receipts_sha256=made.receipts_sha256,
    )
