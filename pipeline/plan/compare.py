"""The photos as found against the table as it is: what is new, changed or gone, and what could not
be looked at.

Reads folders and the table, writes nothing. What is to be done about it is planned.py's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from jobs.keys import is_among, is_in_order, sort_and_drop_repeated
from jobs.manifest import Fingerprint, ModelIdentity
from jobs.plan import Plan, carried_archives, hold_back, make_plan, rows_below
from jobs.storage.object_store import AnyPath
from pipeline.errors import TableError
from pipeline.failures import RETRYABLE
from pipeline.find.file_list import what_is_missing
from pipeline.find.found import Scan
from pipeline.find.grown import KnownArchives
from pipeline.find.left_out import clutter_among
from pipeline.find.scan import root_of, scan
from pipeline.find.unseen import Unseen, find_unseen, unseen_places
from pipeline.path_names import display
from pipeline.settings import Settings
from pipeline.table.embeddings import EMBEDDINGS
from pipeline.table.match import is_complete, is_in_step, rows_of
from pipeline.table.record import PRODUCTS, TableRecord
from pipeline.table.table import read_classes, read_hashes, read_known

from .class_changes import name_changes, prompt_changes
from .moved_roots import find_moved_roots, with_donors
from .settle import n_left, young_images


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
    n_clutter: int  # rows dropped that an earlier version labelled, of what it did not leave out
    is_in_step: bool  # what is beside the table was made by the same merge

    @property
    def changes_nothing(self) -> bool:
        """Whether there is nothing to label, to drop or to bring in step."""
        return self.record is not None and self.plan.changes_nothing and self.is_in_step


def compare(
    settings: Settings, listed: bytes | None, record: TableRecord | None, identity: ModelIdentity
) -> Comparison:
    """Scan the photos and compare them with the table that `record` is of."""
    fingerprint = identity.fingerprint
    missing_list = what_is_missing(listed)
    archives = _known_archives(settings, record, fingerprint) if record else None
    # A new table gets a row for each name of a list, even if no such file is there; a table that is
    # there already keeps the rows it has.
    found = scan(
        settings.paths, settings.selection, None if record and missing_list else listed, archives
    )
    # The listing and the table together are the most that is ever in memory, so the table is read
    # only when the listing has been sorted.
    del archives
    found.listing = sort_and_drop_repeated(found.pop_listing())
    table = _read_known(settings) if record is not None else None
    forget = [display(root_of(folder)) for folder in settings.forget]
    if table is None and _is_there(settings, record):
        _refuse_to_empty(settings, found, forget, missing_list)
    mounts = _mounts(settings, record)

    def unseen_of(rows: pa.Table | None, mounts: Sequence[tuple[str, str]]) -> Unseen:
        return find_unseen(found, rows, missing_list, settings.selection, forget, mounts)

    moved = find_moved_roots(
        found.listing, table, settings, found, lambda: unseen_of(table, mounts).rows
    )
    known = moved.rows(table)
    unseen = unseen_of(known, moved.mounts(mounts))
    if unseen.not_listed:
        listing = found.pop_listing()
        found.listing = listing.filter(pc.invert(is_among(listing, unseen.not_listed)))
    had_rows = known is not None and len(known) > 0
    n_clutter = 0
    young = young_images(settings, found.listing)
    if table is None or known is None or record is None or settings.restart:
        if _is_there(settings, record):
            young = young.slice(0, 0)  # no row may stay as it is, and none may be lost
        record = None
        n_young = len(young)
        found.listing = hold_back(found.pop_listing(), young)
        plan, changed = make_plan(found.pop_listing(), None, fingerprint.digest, RETRYABLE), []
    else:
        if found.unchanged:
            unchanged = [rows_below(known, root, archive) for root, archive in found.unchanged]
            found.listing = pa.concat_tables([found.pop_listing(), *unchanged])
        beside = {
            name: rows_of(PRODUCTS[name], place, table, settings.table, record, fingerprint)
            for name, place in settings.beside.items()
        }
        beside_known = {name: moved.in_order(rows) for name, rows in beside.items()}
        held: pa.ChunkedArray | None = is_among(known, young)
        rescorable = _rescorable(record, known, fingerprint, [unseen.rows, held], beside_known)
        if record.fingerprint != fingerprint.digest and rescorable is None:
            young, held = young.slice(0, 0), None  # no row may be kept with the fingerprint it has
        n_young = n_left(young, known)
        plan = make_plan(
            hold_back(found.pop_listing(), young, known, held),
            known,
            fingerprint.digest,
            RETRYABLE,
            unseen.rows,
            beside_known,
            rescorable,
            held,
        )
        # Before the plan's rows are numbered as in the table, where roots have other names.
        n_clutter = _dropped_clutter(settings, record, known, plan)
        plan = moved.of_table(plan, known)
        plan = with_donors(plan, table, settings.table, record, fingerprint.digest, beside)
        changed = _what_changed(settings.table, record, identity)
    if not plan.counts["found"] and not had_rows and not unseen.reasons and not n_young:
        unseen = Unseen(
            [
                "no image was found at all; is everything mounted? --include '*.EXT' takes other "
                "names"
            ]
        )
    plan.counts["unseen_places"] = len(unseen.reasons)
    for name in ("moved", "reused"):
        plan.counts.setdefault(name, 0)
    weights = fingerprint.weights_sha256
    earlier = record.fingerprint_fields.get("weights_sha256") if record else weights
    in_step = record is None or all(
        is_in_step(PRODUCTS[name], place, record) for name, place in settings.beside.items()
    )
    is_other_model = earlier != weights
    return Comparison(
        plan, record, changed, is_other_model, found, unseen, n_young, n_clutter, in_step
    )


def _dropped_clutter(settings: Settings, record: TableRecord, known: pa.Table, plan: Plan) -> int:
    """How many of the rows that go are of what is left out by default now, and was not when the
    table was written.
    """
    before = (record.selection or {}).get("default_excludes")
    if not plan.counts["gone"] or before == settings.selection.to_record()["default_excludes"]:
        return 0
    clutter = clutter_among(known.select(["root", "path"]))
    for rows in (plan.pending, known.take(plan.kept)):  # a list may name what no scan takes
        clutter = clutter.filter(pc.invert(is_among(clutter, rows))) if len(clutter) else clutter
    return len(clutter)


def _known_archives(
    settings: Settings, record: TableRecord, fingerprint: Fingerprint
) -> KnownArchives:
    """What the table knows of images in archives; nothing where all is labelled anew."""
    if settings.restart:
        return KnownArchives()
    rows = read_known(settings.table, in_archives=True)
    before, now = record.selection or {}, settings.selection.to_record()
    # What is left out by default now changes nothing, where no row is of it.
    is_same_selection = before == now or (
        before.get("default_excludes") is None
        and before | {"default_excludes": now["default_excludes"]} == now
        and not len(clutter_among(rows))
    )
    # A row that lacks an embedding needs its place in the archive.
    is_settled = is_same_selection and all(
        is_complete(PRODUCTS[name], at, record) for name, at in settings.beside.items()
    )
    settled = carried_archives(rows, fingerprint.digest, RETRYABLE) if is_settled else {}
    return KnownArchives(settled, rows, partial(read_hashes, settings.table))


def _rescorable(
    record: TableRecord,
    known: pa.Table,
    fingerprint: Fingerprint,
    unread: Sequence[pa.Array | pa.ChunkedArray | None],
    beside: dict[str, pa.Array],
) -> str | None:
    """The table's fingerprint, where its labels can be made anew from their embeddings: only the
    head has changed since, and what is not to be read (each of `unread`) has embeddings, too. Else
    None.
    """
    earlier, rows = Fingerprint.from_record(record.fingerprint_fields), beside.get(EMBEDDINGS.name)
    if rows is None or earlier is None:
        return None
    if earlier == fingerprint or earlier.features_digest != fingerprint.features_digest:
        return None
    lacking = pc.and_(pc.equal(known["status"], "ok"), pc.is_null(rows))
    for rows in unread:
        if rows is not None and pc.any(pc.and_(lacking, rows), min_count=0).as_py():
            return None
    return record.fingerprint


def _mounts(settings: Settings, record: TableRecord | None) -> list[tuple[str, str]]:
    """Where disks were mounted in the last run, or when the table was written."""
    last = Job(settings.table).mounts() if record else []
    if record and last is None:
        return record.mounts
    return [(root, folder) for root, folder in last or []]


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
        "another --out, or label everything again with --restart"
    )


def _is_there(settings: Settings, record: TableRecord | None) -> bool:
    """Whether there is a table, even one that a run may replace only with --overwrite."""
    return record is not None or (not settings.is_dataset and settings.table.exists())


def _refuse_to_empty(
    settings: Settings, found: Scan, forget: list[str], missing_list: str | None
) -> None:
    """Raise TableError where a table whose rows cannot be read would be replaced while something
    that it may have rows of cannot be looked at: nobody could say which rows to keep.
    """
    places = unseen_places(found, forget) + ([missing_list] if missing_list else [])
    if places:
        raise TableError(
            f"the rows of {settings.table} cannot be read, so those of what cannot be looked at "
            f"now could not be kept ({'; '.join(places[:3])}), and all would be lost. The table "
            "stays as it is: mount what is missing and run the same command again, see what "
            f"`label-images verify {settings.table} --repair` can save, leave those rows with "
            "--forget FOLDER, or choose another --out"
        )


def _what_changed(table: AnyPath, record: TableRecord, identity: ModelIdentity) -> list[str]:
    """What makes a table's labels stale, in words: the model by its name before anything else."""
    earlier = Fingerprint.from_record(record.fingerprint_fields)
    if earlier is None:
        return ["what a fingerprint holds"]
    now = identity.fingerprint
    is_same = (now.labels_sha256, now.head_sha256) == (earlier.labels_sha256, earlier.head_sha256)
    differences = now.differences(earlier, {} if is_same else _class_changes(table, identity))
    if record.model != identity.name and differences:
        differences.insert(0, f"the model (was {record.model}, is {identity.name})")
    return differences


def _class_changes(table: AnyPath, identity: ModelIdentity) -> dict[str, str]:
    """What to say of the class names, and of a head that words were made into, by field; nothing
    where the table does not say what its classes are.
    """
    try:
        before = read_classes(table)
    except TableError:
        return {}
    after = identity.classes()
    said = {
        "labels_sha256": name_changes(before, after),
        "head_sha256": prompt_changes(before, after),
    }
    return {name: text for name, text in said.items() if text}
