"""The photos as found against the table as it is: what is new, changed or gone, and what could not
be looked at.

Reads folders and the table, writes nothing. What is to be done about it is planning.py's to say.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.manifest import Fingerprint, ModelIdentity
from jobs.plan import (
    Plan,
    hold_back,
    is_in_order,
    make_plan,
    rows_below,
    settled_archives,
    sort_and_drop_repeated,
)
from jobs.storage.object_store import AnyPath
from pipeline.find.file_list import what_is_missing
from pipeline.find.overlap import empty_places
from pipeline.find.scan import Scan, scan
from pipeline.find.unseen import Unseen, find_unseen
from pipeline.table.record import TableRecord
from pipeline.table.table import read_known

from .errors import TableError
from .failures import RETRYABLE
from .path_names import display
from .settings import Settings


@dataclass(frozen=True)
class Comparison:
    """The photos as found against the table as it is; `record` is the table's, None for no table."""

    plan: Plan
    record: TableRecord | None
    stale_because: list[str]  # what changed since the table was written
    is_other_model: bool  # than the table's, and not only other settings
    scan: Scan
    unseen: Unseen
    n_young: int  # left for the next run by --settle


def compare(
    settings: Settings, listed: bytes | None, record: TableRecord | None, identity: ModelIdentity
) -> Comparison:
    """Scan the photos and compare them with the table that `record` is of."""
    fingerprint = identity.fingerprint
    missing_list = what_is_missing(listed)
    archives = {}
    if (
        record is not None
        and not settings.restart
        and record.selection == settings.wanted.to_record()
    ):
        archives = settled_archives(
            read_known(settings.table, in_archives=True), fingerprint.digest, RETRYABLE
        )
    # A new table has a row for each name of a list, also where no such file is there; a table keeps
    # what it has.
    found = scan(
        settings.paths, settings.wanted, None if record and missing_list else listed, archives
    )
    # Both in memory are the most there ever is: the table is read when the listing has been sorted.
    found.listing = sort_and_drop_repeated(found.pop_listing())
    known = _read_known(settings) if record is not None else None
    unseen = _find_unseen(settings, found, known, missing_list)
    if settings.restart:
        known = None
    if settings.restart:
        record = known = None
    n_young = 0
    if settings.settle:
        now, settle = datetime.now(UTC), timedelta(seconds=settings.settle)
        until = now + settle  # another machine's clock may be ahead
        found.listing, n_young = hold_back(found.pop_listing(), known, now - settle, until)
    if known is None or record is None:
        plan, changed = make_plan(found.pop_listing(), None, fingerprint.digest, RETRYABLE), []
    else:
        if found.unchanged:
            unchanged = [rows_below(known, root, archive) for root, archive in found.unchanged]
            found.listing = pa.concat_tables([found.pop_listing(), *unchanged])
        plan = make_plan(found.pop_listing(), known, fingerprint.digest, RETRYABLE, unseen.rows)
        changed = _what_changed(record, identity)
    if record is None and not plan.counts["found"] and not unseen.reasons:
        unseen = Unseen(
            [
                "no image was found at all; is everything mounted? --include '*.EXT' takes other "
                "names"
            ]
        )
    plan.counts["unseen_places"] = len(unseen.reasons)
    weights = fingerprint.weights_sha256
    earlier = record.fingerprint_fields.get("weights_sha256") if record else weights
    return Comparison(plan, record, changed, earlier != weights, found, unseen, n_young)


def _read_known(settings: Settings) -> pa.Table | None:
    """What a plan needs to know of the table. Raises TableError where it is damaged; None then with
    --restart.
    """
    try:
        known = read_known(settings.table)
    except TableError:
        if settings.restart:
            return None
        raise
    if is_in_order(known):
        return known
    if settings.restart:
        return None
    raise TableError(
        f"the rows of {settings.table} are not in the order label-images wrote them in; choose "
        f"another --out, "
        "or label everything again with --restart"
    )


def _find_unseen(
    settings: Settings, found: Scan, known: pa.Table | None, missing_list: str | None
) -> Unseen:
    roots = {display(root_of(path)) for path in settings.paths}
    folders = {display(root_of(path)) for path in settings.paths if path.is_dir()}
    unreadable = {root for root, folder in found.unlisted if not folder}
    empty = folders - set(pc.unique(found.listing["root"]).to_pylist()) - unreadable
    places = empty_places(empty, found.inner, found.listing, found.unchanged)
    forget = [display(root_of(folder)) for folder in settings.forget]
    return find_unseen(known, found.unlisted, places, missing_list, sorted(roots), forget)


def _what_changed(record: TableRecord, identity: ModelIdentity) -> list[str]:
    """What makes a table's labels stale, in words: the model by its name before anything else."""
    earlier = Fingerprint.from_record(record.fingerprint_fields)
    if earlier is None:
        return ["what a fingerprint holds"]
    differences = identity.fingerprint.differences(earlier)
    if record.model != identity.name and differences:
        differences.insert(0, f"the model (was {record.model}, is {identity.name})")
    return differences


def root_of(path: AnyPath) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else str(path)
