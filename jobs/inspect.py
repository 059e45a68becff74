"""What in a job folder does not prove itself, and how to drop it (`label-images verify`,
`--repair`).
"""

from collections.abc import Iterator
from typing import Any

from jobs.storage.atomic import remove

from .job import Job


def problems(job: Job) -> Iterator[str]:
    """Yield what does not prove itself, in an unfinished job (a run would do it again) or in what
    is kept of the last runs.
    """
    if job.run_path.exists() and job.read_run() is None:
        yield "run.json, which says what the last run wrote, is damaged or of an older version"
    if job.history_path.exists() and not job.has_history:
        yield "history.json, which says how the last runs ended, is damaged or of another version"
    manifest = job.manifest
    if job.manifest_path.exists() and manifest is None:
        yield "manifest.json of the unfinished job is damaged or of an older version"
    elif manifest and job.has_plan and not job.proves_plan(manifest):
        yield "the plan of the unfinished job is not as it was written"
    elif manifest and job.has_plan:
        proven: set[Any] = {job.receipt_path(shard) for shard in job.receipts(manifest)}
        found: set[Any] = set((job.folder / "receipts").glob("*.json"))
        for path in sorted(found - proven):
            yield f"receipts/{path.name} does not prove its part"


def mend(job: Job) -> None:
    """Drop what `problems` names."""
    if job.read_run() is None:
        remove(job.run_path)
    if not job.has_history:
        remove(job.history_path)
    manifest = job.manifest
    if manifest is None or (job.has_plan and not job.proves_plan(manifest)):
        remove(job.manifest_path)
        job.clear()
    elif job.has_plan:
        proven = job.receipts(manifest)
        job.drop_shards(shard for shard in range(manifest.n_shards) if shard not in proven)
