"""What a run is to do: go on with an unfinished job, or compare the photos with the table and plan.

Used by the run and by `label-images plan`, so that both say the same.
"""

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.manifest import Fingerprint, Manifest
from jobs.plan import Plan, make_plan, rows_below, shard_size_for
from vit.classifier import Classifier, load_classifier

from .decode import DECODE_RULES, RETRYABLE
from .errors import TableError
from .parquet import read_known, read_record
from .scan import Scan, scan
from .settings import Settings


@dataclass(frozen=True)
class Comparison:
    """The photos as found against the table as it is."""

    plan: Plan
    base_table: str | None  # plan_id of the table rows are carried over from
    base_counts: dict[str, Any] | None  # its counts
    stale_because: list[str]  # the fingerprint's fields that differ
    found: Scan


def load_model(settings: Settings) -> Classifier:
    return load_classifier(settings.model, settings.labels, settings.arch, settings.preprocess)


def fingerprint_of(classifier: Classifier, top_k: int) -> Fingerprint:
    return Fingerprint(
        weights_sha256=classifier.weights_sha256,
        architecture=classifier.architecture,
        # Through JSON once, so that it equals what a manifest gives back (lists, not tuples).
        preprocess=json.loads(json.dumps(asdict(classifier.preprocess))),
        temperature=classifier.temperature,
        labels_sha256=classifier.labels_sha256,
        top_k=min(top_k, len(classifier.labels)),
        decode_rules=DECODE_RULES,
    )


def selection_of(settings: Settings, listed: bytes | None) -> dict[str, Any]:
    """What decides, beside the folders themselves, which files are found; as JSON gives it back."""
    return {
        "roots": sorted({os.path.abspath(path) for path in settings.paths}),
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "files_from_sha256": hashlib.sha256(listed).hexdigest() if listed is not None else None,
    }


def table_record(out: Path, overwrite: bool) -> dict[str, Any] | None:
    """The record of the table at `out`; None without one, or where --overwrite gives leave to replace it."""
    try:
        return read_record(out)
    except TableError:
        if overwrite and not out.is_dir():
            return None
        raise


def find_unfinished(
    job: Job, record: dict[str, Any] | None, fingerprint: Fingerprint, selection: dict[str, Any]
) -> tuple[Manifest | None, list[str]]:
    """Return the manifest of a job that can go on, or else the reasons why the one there cannot."""
    manifest = job.manifest
    table_id = record["plan_id"] if record else None
    if manifest is None or not job.has_plan or manifest.plan_id == table_id:
        return None, []
    reasons = [f"{field}" for field in fingerprint.differences(manifest.fingerprint)]
    if manifest.selection != selection:
        reasons.append("other PATHs, --include, --exclude or --files-from")
    if manifest.base_table != table_id:
        reasons.append("the table was replaced or removed meanwhile")
    return (None, reasons) if reasons else (manifest, [])


def compare(
    settings: Settings, listed: bytes | None, record: dict[str, Any] | None, fingerprint: Fingerprint
) -> Comparison:
    """Scan the photos and compare them with the table; `record` is the table's, None for none."""
    assert settings.out is not None
    found = scan(settings.paths, settings.include, settings.exclude, listed)
    known = None
    listing = found.listing
    stale_because: list[str] = []
    if record and not settings.restart:
        known = read_known(settings.out)
        # Rows below a folder that cannot be read now are kept: nothing says that its photos are gone.
        kept_blind = [rows_below(known, root, folder) for root, folder in found.unlisted]
        listing = pa.concat_tables([listing, *kept_blind])
        earlier = Fingerprint.from_record(record["fingerprint_fields"])
        stale_because = fingerprint.differences(earlier) if earlier else ["the fingerprint's fields"]
    plan = make_plan(listing, known, fingerprint.digest, RETRYABLE)
    if len(plan.kept) > 1 and not pc.all(pc.greater(plan.kept[1:], plan.kept[:-1])).as_py():
        raise TableError(
            f"the rows of {settings.out} are not in the order label-images wrote them in; choose another --out, or "
            "label everything again with --restart"
        )
    base = record if known is not None else None
    return Comparison(
        plan, base["plan_id"] if base else None, base["counts"] if base else None, stale_because, found
    )


def make_manifest(
    comparison: Comparison,
    settings: Settings,
    selection: dict[str, Any],
    classifier: Classifier,
    fingerprint: Fingerprint,
) -> Manifest:
    n_images = len(comparison.plan.pending)
    return Manifest(
        plan_id=uuid.uuid4().hex,
        tool_version=version("label-images"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        selection=selection,
        base_table=comparison.base_table,
        n_images=n_images,
        shard_size=settings.shard_size or shard_size_for(n_images),
        counts=comparison.plan.counts,
        model=classifier.name,
        fingerprint=fingerprint,
        settings=settings.to_record(),
    )

