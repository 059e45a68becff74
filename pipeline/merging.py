"""The end of a run: rows carried over and the parts of its shards become the products, each switched
by one rename.

The table of labels is the last: it carries the plan's id, and with that the job is done. The others
are found switched already when a crash came between.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.job import Job
from jobs.receipts import UNKNOWN, Provenance, Receipt
from jobs.storage.object_store import REQUESTS_AT_ONCE, as_arrow
from pipeline.label.labeller import Run
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.labels import LABELS
from pipeline.table.merge import Merge, Parts, write_merged
from pipeline.table.partitioned import write_dataset
from pipeline.table.product import Product
from pipeline.table.record import TableRecord
from pipeline.table.table import read_index, read_record

from .outcome import now_text
from .path_names import display
from .plan.choice import ModelChoice


def merge(run: Run, receipts: Iterable[Receipt]) -> dict[str, int]:
    """Make the products of carried-over rows and parts; return the failed rows by error code."""
    run.job.check_held()
    makers = [receipt.made_by or UNKNOWN for receipt in receipts]
    if EMBEDDINGS.name in run.manifest.products:
        _merge_embeddings(run, makers)
    return _merge_labels(run, makers)


def _merge_labels(run: Run, makers: Sequence[Provenance]) -> dict[str, int]:
    job, manifest = run.job, run.manifest
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    before = read_record(base) if base is not None and len(kept) else None
    record = _record(run, before, makers)
    whole = Merge(kept, job.pending()["position"].to_numpy(), _parts(run, LABELS))
    classes = run.identity.classes()
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, classes)
    return write_merged(job.out, base, whole, record, classes)


def _merge_embeddings(run: Run, makers: Sequence[Provenance]) -> None:
    """Bring the embeddings up to date: of the kept rows that have one, and of those labelled now."""
    out = run.settings.embeddings
    assert out is not None
    job, fingerprint = Job(out), run.manifest.fingerprint
    before = read_record(out, EMBEDDINGS)
    if before is not None and before.plan_id == run.manifest.plan_id:
        return
    kept = run.job.kept(EMBEDDINGS.name)
    positions = run.job.pending()["position"].to_numpy()
    labelled = np.flatnonzero(_is_labelled(run))
    # Of each row of the table of labels, whether it has an embedding: so many stand before each.
    is_kept_row = np.ones(len(kept) + len(positions), np.bool_)
    is_kept_row[positions] = False
    has_one = np.zeros(len(is_kept_row), np.bool_)
    has_one[is_kept_row] = kept.is_valid().to_numpy(zero_copy_only=False)
    has_one[positions[labelled]] = True
    places = np.cumsum(has_one) - 1
    kept_rows = kept.drop_null().to_numpy()
    whole = Merge(kept_rows, places[positions[labelled]], _parts(run, EMBEDDINGS), labelled)
    record = replace(
        _record(run, before if len(kept_rows) else None, makers),
        product_name=EMBEDDINGS.name,
        fingerprint=fingerprint.features_digest,
        fingerprint_fields=fingerprint.features_fields,
        labels_at=str(run.job.out),
        embeddings_at=None,
    )
    write_dataset(job, read_index(out) if len(kept_rows) else None, whole, record, [])


def _is_labelled(run: Run) -> np.ndarray:
    """Of each image of the job by its index, whether it has a label."""

    def read(shard: int) -> np.ndarray:
        part = as_arrow(run.job.part_path(shard))
        status = pq.read_table(part, columns=["status"], partitioning=None)["status"]
        return pc.equal(status, "ok").to_numpy()

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        return np.concatenate(
            [np.array([], np.bool_), *threads.map(read, range(run.manifest.n_shards))]
        )


def _parts(run: Run, product: Product) -> Parts:
    paths = [run.job.part_path(shard, product.name) for shard in range(run.manifest.n_shards)]
    return Parts(product, paths, run.manifest.shard_size)


def _record(run: Run, before: TableRecord | None, makers: Sequence[Provenance]) -> TableRecord:
    """What the new table says of itself; `before` is of the one whose rows are carried over."""
    manifest = run.manifest
    made_by = before.made_by.copy() if before else []
    for maker in makers:
        if maker not in made_by:
            made_by.append(maker)
    embeddings = run.settings.embeddings
    return TableRecord(
        plan_id=manifest.plan_id,
        created_at=now_text(),
        run_id=run.id,
        tool_version=version("label-images"),
        model=run.identity.name,
        fingerprint=manifest.fingerprint.digest,
        fingerprint_fields=asdict(manifest.fingerprint),
        made_by=made_by,
        roots=[display(root) for root in manifest.selection["roots"]],
        selection=run.settings.wanted.to_record(),
        choice=ModelChoice.of(run.settings, run.identity.address).to_record(),
        mounts=[(root, folder) for root, folder in manifest.settings.get("mounts", [])],
        embeddings_at=str(embeddings) if embeddings is not None else None,
    )
