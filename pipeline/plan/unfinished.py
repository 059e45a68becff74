"""The job that an earlier run left: whether this run can go on with it, and what stands against it."""

import hashlib
from typing import Any

from jobs.job import Job
from jobs.manifest import Fingerprint, Manifest
from pipeline.find.scan import root_of
from pipeline.settings import Settings
from pipeline.table.labels import LABELS
from pipeline.table.record import PRODUCTS, TableRecord
from pipeline.table.table import read_record


def selection_of(settings: Settings, listed: bytes | None) -> dict[str, Any]:
    """What decides which files are found, as JSON gives it back."""
    return {
        "roots": sorted({root_of(path) for path in settings.paths}),
        **settings.selection.to_record(),
        "files_from_sha256": hashlib.sha256(listed).hexdigest() if listed is not None else None,
    } | ({"forget": sorted(map(root_of, settings.forget))} if settings.forget else {})


def bases_of(settings: Settings) -> dict[str, str | None]:
    """The plan_id of each product there is beside the labels, None for one that is yet to come."""
    records = {name: read_record(at, PRODUCTS[name]) for name, at in settings.beside.items()}
    return {name: record.plan_id if record else None for name, record in records.items()}


def find_unfinished(
    job: Job,
    record: TableRecord | None,
    fingerprint: Fingerprint,
    selection: dict[str, Any],
    settings: Settings,
) -> tuple[Manifest | None, list[str]]:
    """Return the manifest of an unfinished job that can go on, or else what stands against it."""
    manifest = job.manifest
    table_id = record.plan_id if record else None
    if not job.has_plan or not job.manifest_path.exists():
        return None, []
    if manifest is None:
        return None, ["its manifest is damaged or of an older version"]
    if manifest.plan_id == table_id:
        return None, []
    obstacles = fingerprint.differences(manifest.fingerprint)
    if not job.proves_plan(manifest):
        obstacles.append("its plan is not as it was written")
    if manifest.selection != selection:
        obstacles.append(
            "PATHs, --include, --exclude, --files-from, the columns of tables or what is left out by "
            "default are others"
        )
    # Without one (--restart) no row of the table is needed.
    if manifest.base_table not in (None, table_id):
        obstacles.append("the table was replaced or removed meanwhile")
    if manifest.products != (products := [LABELS.name, *settings.beside]):
        obstacles.append(
            f"it makes {' and '.join(manifest.products)}, not {' and '.join(products)}"
        )
    for product, base in bases_of(settings).items():
        # Its own id has a product that was switched before a crash.
        if base not in (manifest.bases.get(product), manifest.plan_id):
            obstacles.append(f"the {product} were replaced or removed meanwhile")
        elif base == manifest.plan_id and len(job.receipts(manifest)) != manifest.n_shards:
            # What was merged cannot be labelled again: the products would tell two stories.
            obstacles.append(f"shards that the {product} were made of are not proven any more")
    return (None, obstacles) if obstacles else (manifest, [])
