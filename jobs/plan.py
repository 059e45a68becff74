"""The plan: which images are new, changed, stale or to retry, and which rows are carried over.

    listing   every image found now: root, path, path_bytes, size_bytes, mtime, container, offset
    known     the first five of the table as it is, and status, error_code, fingerprint
    Plan      pending images in index order; kept row numbers of the known table

All in Arrow: no image has a Python object of its own. Pure: reads and writes no files (job.py
freezes a plan). Rows are in the order of root and path, byte for byte, so that a table's order says
nothing of how it was made. The index has the same order, except within an archive or a table of
images: these are read from front to back.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from . import archives
from .keys import (
    in_pieces,
    is_among,
    is_in_order,
    keys_of,
    one_array,
    range_below,
    sort_and_drop_repeated,
)

FOUND = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("path_bytes", pa.binary()),
        pa.field("size_bytes", pa.int64()),  # null where even stat failed
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
    ]
)
# Of an image in an archive or a table of images: where that lies, and the first byte or the row of
# it.
LISTING = FOUND.append(pa.field("container", pa.string())).append(pa.field("offset", pa.int64()))
KNOWN = pa.schema(
    [*FOUND, *(pa.field(name, pa.string()) for name in ("status", "error_code", "fingerprint"))]
)

# Beside the listing's columns: why the image is pending, and its row in the finished table.
PENDING = LISTING.append(pa.field("action", pa.string())).append(pa.field("position", pa.int64()))

ACTIONS = ("new", "changed", "stale", "retry", "incomplete")


@dataclass(frozen=True)
class Plan:
    """`pending` (schema PENDING, row number = index), `kept` (int64 rows of the known table,
    ascending).

    `counts`: found, one for each action, carried, gone, and unseen: rows kept of what could not be
    looked at. What was found is labelled, relabelled or carried: `found` is the sum of the actions,
    `relabelled` and `carried`. `kept_of` has, for each other product, its row for each kept row; null where it has
    none. `rescores`: the labels of the kept rows are made anew, from their embeddings. `moved` are
    the old roots of kept rows, with the new ones (moved.py): then `kept` is in the order of those.
    `donors` are rows that may give their labels to new images (donors.py).
    """

    pending: pa.Table
    kept: pa.Array
    counts: dict[str, int]
    kept_of: dict[str, pa.Array] = field(default_factory=dict)
    rescores: bool = False
    moved: dict[str, str] = field(default_factory=dict)
    donors: pa.Table | None = None

    @property
    def changes_nothing(self) -> bool:
        changes = len(self.pending), self.counts["gone"], self.rescores, self.moved
        return not any(changes)


def make_plan(
    listing: pa.Table,
    known: pa.Table | None,
    fingerprint: str,
    retryable: Collection[str],
    unseen: pa.Array | None = None,
    rows_of: Mapping[str, pa.Array] | None = None,
    rescorable: str | None = None,
    held: pa.ChunkedArray | None = None,
) -> Plan:
    """Compare the images found with the rows known, which are in order (`is_in_order`).

    An image is new when no row has its root and path; changed when size or mtime differ; stale when
    its row has another fingerprint; to retry when it failed with a `retryable` error code; else its
    row is carried over. Rows without an image are gone, but for those that `unseen` (bool, one for
    each known row) names: nothing says that their images are gone, and they stay as they are.

    `rows_of` has, for each product beside the labels, its row (int64) for each known row. A labelled
    image that one of them has no row of is incomplete. `rescorable` is a fingerprint that differs
    from today's in the head alone: a row with it that has an embedding is relabelled from that, and
    a failed one fails for the same reason; no image is read for either. `held` (bool, one for each
    known row) names rows that are listed as they are, and not as the files are: nothing is read.
    """
    rows_of = rows_of or {}
    known = KNOWN.empty_table() if known is None else known
    if unseen is not None:
        listing = pa.concat_tables([listing, _as_listing(known.filter(unseen))])
    if not is_in_order(listing):
        listing = sort_and_drop_repeated(listing)
    lacking = _lacking(known, rows_of)
    pending, kept, tally = [PENDING.empty_table()], [pa.array([], pa.int64())], Counter[str]()
    for start, first, now, piece in in_pieces(listing, known):
        rows = piece.cast(KNOWN)
        row, action = _compare(now, rows, rescorable or fingerprint, retryable)
        if lacking is not None:
            is_lacking = pc.fill_null(lacking.slice(first, len(rows)).take(one_array(row)), False)
            is_incomplete = pc.and_(pc.equal(action, "carried"), is_lacking)
            action = pc.if_else(is_incomplete, "stale" if rescorable else "incomplete", action)
        if held is not None:
            is_held = pc.fill_null(held.slice(first, len(rows)).take(one_array(row)), False)
            action = pc.if_else(is_held, "carried", action)
        if rescorable is not None:
            is_ok = pc.equal(rows["status"].take(row), "ok")
            is_relabelled = pc.and_(pc.equal(action, "carried"), pc.fill_null(is_ok, False))
            action = pc.if_else(is_relabelled, "relabelled", action)
        if unseen is not None:
            is_unseen = pc.fill_null(unseen.slice(first, len(rows)).take(one_array(row)), False)
            action = pc.if_else(is_unseen, "unseen", action)
        is_pending = pc.invert(
            pc.is_in(action, value_set=pa.array(["carried", "relabelled", "unseen"]))
        )
        position = pc.add(pc.indices_nonzero(is_pending).cast(pa.int64()), start)
        images = now.filter(is_pending).append_column("action", action.filter(is_pending))
        pending.append(images.append_column("position", position).cast(PENDING))
        kept.append(one_array(pc.add(row.filter(pc.invert(is_pending)).cast(pa.int64()), first)))
        tally.update(
            {entry["values"]: entry["counts"] for entry in pc.value_counts(action).to_pylist()}
        )
        tally["known"] += len(row) - row.null_count
    counts = {"found": len(listing) - tally["unseen"]} | {
        name: tally[name] for name in (*ACTIONS, "relabelled", "carried")
    }
    counts |= {"gone": len(known) - tally["known"], "unseen": tally["unseen"]}
    all_kept = pa.concat_arrays(kept)
    kept_of = {product: one_array(rows.take(all_kept)) for product, rows in rows_of.items()}
    ordered = _in_reading_order(pa.concat_tables(pending))
    return Plan(ordered, all_kept, counts, kept_of, rescores=rescorable is not None)


def _lacking(known: pa.Table, rows_of: Mapping[str, pa.Array]) -> pa.ChunkedArray | None:
    """Of each known row, whether it is labelled and a product has no row of it; None for none."""
    lacking: pa.ChunkedArray | None = None
    for rows in rows_of.values():
        is_null = pc.is_null(rows)
        lacking = is_null if lacking is None else pc.or_(lacking, is_null)
    return None if lacking is None else pc.and_(pc.equal(known["status"], "ok"), lacking)


def _compare(
    listing: pa.Table, known: pa.Table, fingerprint: str, retryable: Collection[str]
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """For each image found: its row of `known` or null, and what is to be done with it."""
    row = pc.index_in(keys_of(listing), value_set=one_array(keys_of(known)))
    before = known.take(row)
    is_changed = pc.or_(_differs(listing["size_bytes"], before["size_bytes"]),
                        _differs(listing["mtime"], before["mtime"]))  # fmt: skip
    is_stale = pc.fill_null(pc.not_equal(before["fingerprint"], fingerprint), True)
    is_retry = pc.is_in(before["error_code"], value_set=pa.array(sorted(retryable), pa.string()))
    action = pc.if_else(
        pc.is_null(row), "new",
        pc.if_else(is_changed, "changed",
                   pc.if_else(is_stale, "stale", pc.if_else(is_retry, "retry", "carried"))),
    )  # fmt: skip
    return row, action


def _in_reading_order(pending: pa.Table) -> pa.Table:
    if pending["container"].null_count == len(pending):
        return pending
    order = [(name, "ascending") for name in ("root", "container", "offset", "path")]
    return pending.take(pc.sort_indices(pending, order))


def shard_size_for(n_images: int, n_shards: int = 200, at_least: int = 128) -> int:
    """Choose how many images make a shard, the work a crash can cost.

    About `n_shards` a job, between `at_least` images (128 are a minute of a large model on a CPU)
    and 8,192 (so that 100 million images need 12,000 receipts).
    """
    return min(max(at_least, -(-n_images // n_shards // at_least) * at_least), 8192)


def is_young(listing: pa.Table, since: datetime, until: datetime) -> pa.ChunkedArray:
    """Of each image, whether its file was changed between two times."""
    is_between = pc.and_(pc.greater(listing["mtime"], since), pc.less(listing["mtime"], until))
    return pc.fill_null(is_between, False)


def hold_back(
    listing: pa.Table,
    young: pa.Table,
    known: pa.Table | None = None,
    held: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Leave `young` images for the next run: return the listing without them.

    Those that have a row are listed as the row has them, so that it is kept (`held`, of each known
    row).
    """
    if not len(young):
        return listing
    listing = listing.filter(pc.invert(is_among(listing, young)))
    return (
        listing if known is None else pa.concat_tables([listing, _as_listing(known.filter(held))])
    )


def rows_below(known: pa.Table, root: str, folder: str) -> pa.Table:
    """The known images below a folder of a root as a listing: as if they had been found unchanged."""
    start, stop = range_below(known, root, folder)
    return _as_listing(known.slice(start, stop - start))


def carried_archives(
    known: pa.Table, fingerprint: str, retryable: Collection[str]
) -> dict[tuple[str, str], int]:
    """(root, archive) of which all known rows would be carried over -> their time of change, in
    microseconds.

    An archive that still has it need not be looked into again. Its rows have it, but where it grew:
    the rows of its earlier images then have earlier times, and the latest is the archive's. Damaged
    archives, which have a row of their own, are left out.
    """
    is_inside = pc.match_substring(known["path"], archives.INSIDE, ignore_case=True)
    inside = known.filter(is_inside).cast(KNOWN)
    if not len(inside):
        return {}
    archive = pc.struct_field(pc.extract_regex(inside["path"], archives.ARCHIVE_OF), "archive")
    is_carried = pc.and_(
        pc.equal(inside["fingerprint"], fingerprint),
        pc.invert(
            pc.is_in(inside["error_code"], value_set=pa.array(sorted(retryable), pa.string()))
        ),
    )
    rows = pa.table(
        {
            "root": inside["root"],
            "archive": archive,
            "mtime": inside["mtime"].cast(pa.int64()),
            "is_carried": is_carried,
        }
    )
    groups = rows.group_by(["root", "archive"]).aggregate(
        [("mtime", "max"), ("mtime", "count"), ("is_carried", "all"), ("is_carried", "count")]
    )
    damaged = (
        known.filter(pc.ends_with(known["path"], archives.SUFFIX, ignore_case=True))
        .select(["root", "path"])
        .to_pylist()
    )
    return {
        (group["root"], group["archive"]): group["mtime_max"]
        for group in groups.to_pylist()
        if group["is_carried_all"]
        and group["mtime_count"] == group["is_carried_count"]
        and {"root": group["root"], "path": group["archive"]} not in damaged
    }


def _as_listing(known: pa.Table) -> pa.Table:
    found = known.select(FOUND.names).cast(FOUND)
    for name in LISTING.names[len(FOUND) :]:
        field = LISTING.field(name)
        found = found.append_column(field, pa.nulls(len(found), field.type))
    return found


def _differs(now: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unequal, where null equals null."""
    one_null = pc.xor(pc.is_null(now), pc.is_null(before))
    return pc.or_(one_null, pc.fill_null(pc.not_equal(now, before), False))
