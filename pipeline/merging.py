"""The end of a run: the rows carried over and the parts of its shards become the table."""

from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version

from jobs.receipts import UNKNOWN, Receipt
from pipeline.label.labeller import Run
from pipeline.table.labels import LABELS
from pipeline.table.merge import Merge, Parts, write_merged
from pipeline.table.partitioned import write_dataset
from pipeline.table.record import TableRecord
from pipeline.table.table import read_index, read_record

from .outcome import now_text
from .path_names import display
from .plan.choice import ModelChoice


def merge(run: Run, receipts: Iterable[Receipt]) -> dict[str, int]:
    """Make the table of carried-over rows and parts; return its failed rows by error code."""
    job, manifest = run.job, run.manifest
    job.check_held()
    kept, base = job.kept().to_numpy(), job.out if manifest.base_table else None
    before = read_record(base) if base is not None and len(kept) else None
    made_by = before.made_by.copy() if before else []
    for receipt in receipts:
        maker = receipt.made_by or UNKNOWN
        if maker not in made_by:
            made_by.append(maker)
    record = TableRecord(
        plan_id=manifest.plan_id,
        created_at=now_text(),
        run_id=run.id,
        tool_version=version("label-images"),
        model=run.identity.name,
        fingerprint=manifest.fingerprint.digest,
        fingerprint_fields=asdict(manifest.fingerprint),
        made_by=made_by,
        roots=[display(root) for root in manifest.selection["roots"]],
        selection=run.settings.selection.to_record(),
        choice=ModelChoice.of(run.settings, run.identity.address).to_record(),
        mounts=[(root, folder) for root, folder in manifest.settings.get("mounts", [])],
    )
    paths = [job.part_path(shard) for shard in range(manifest.n_shards)]
    parts = Parts(LABELS, paths, manifest.shard_size)
    whole = Merge(kept, job.pending()["position"].to_numpy(), parts)
    classes = run.identity.classes()
    if run.settings.is_dataset:
        return write_dataset(job, read_index(job.out) if base else None, whole, record, classes)
    return write_merged(job.out, base, whole, record, classes)
