"""The plan: which images are new, changed, stale or to retry, and which rows are carried over.

    listing   every image found now: root, path, path_bytes, size_bytes, mtime
    known     the same columns of the table as it is, and status, error_code, fingerprint
    Plan      pending images in index order; kept row numbers of the known table

All in Arrow, no Python object an image. Pure: reads and writes no files (job.py freezes a plan).
Row order is by root and path, byte for byte, so a table's order does not tell how it came about.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

LISTING = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("path_bytes", pa.binary()),
        pa.field("size_bytes", pa.int64()),  # null where even stat failed
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
    ]
)
KNOWN_COLUMNS = [*LISTING.names, "status", "error_code", "fingerprint"]

# Beside the listing's columns: why the image is pending, and its row in the finished table.
PENDING = LISTING.append(pa.field("action", pa.string())).append(pa.field("position", pa.int64()))

ACTIONS = ("new", "changed", "stale", "retry")


@dataclass(frozen=True)
class Plan:
    """`pending` (schema PENDING, row number = index), `kept` (int64 rows of the known table, ascending).

    `counts`: found, one for each action, carried, gone.
    """

    pending: pa.Table
    kept: pa.Array
    counts: dict[str, int]

    @property
    def changes_nothing(self) -> bool:
        return not len(self.pending) and not self.counts["gone"]


def make_plan(listing: pa.Table, known: pa.Table | None, fingerprint: str, retryable: Collection[str]) -> Plan:
    """Compare the images found with the rows known.

    An image is new when no row has its root and path; changed when size or mtime differ; stale
    when its row has another fingerprint; to retry when it failed with a `retryable` error code;
    else its row is carried over. Rows without an image are gone.
    """
    listing = sort_and_drop_repeated(listing)
    if known is None:
        known = pa.table({name: [] for name in KNOWN_COLUMNS}, schema=_known_schema())
    row = pc.index_in(_keys(listing), value_set=_keys(known).combine_chunks())  # row of known, or null
    before = known.take(row)

    is_new = pc.is_null(row)
    is_changed = pc.or_(_differs(listing["size_bytes"], before["size_bytes"]),
                        _differs(listing["mtime"], before["mtime"]))  # fmt: skip
    is_stale = pc.fill_null(pc.not_equal(before["fingerprint"], fingerprint), True)
    is_retry = pc.is_in(before["error_code"], value_set=pa.array(sorted(retryable), pa.string()))
    action = pc.if_else(
        is_new, "new",
        pc.if_else(is_changed, "changed",
                   pc.if_else(is_stale, "stale", pc.if_else(is_retry, "retry", "carried"))),
    )  # fmt: skip

    is_pending = pc.not_equal(action, "carried")
    position = pc.indices_nonzero(is_pending).cast(pa.int64())
    pending = listing.filter(is_pending).append_column("action", action.filter(is_pending))
    pending = pending.append_column("position", position).cast(PENDING)
    kept = row.filter(pc.invert(is_pending)).cast(pa.int64())

    tally = {entry["values"]: entry["counts"] for entry in pc.value_counts(action).to_pylist()}
    counts = {"found": len(listing)} | {name: tally.get(name, 0) for name in (*ACTIONS, "carried")}
    counts["gone"] = len(known) - (len(row) - row.null_count)
    return Plan(pending, _one_array(kept), counts)


def shard_size_for(n_images: int) -> int:
    """Choose how many images make a shard, the work a crash can cost.

    About 200 shards a job, between 128 images (a minute of a large model on a CPU) and 8,192 (so
    that 100 million images need 12,000 receipts).
    """
    return min(max(128, -(-n_images // 200 // 128) * 128), 8192)


def hold_back(listing: pa.Table, known: pa.Table | None, since: datetime, until: datetime) -> tuple[pa.Table, int]:
    """Leave images changed between two times for the next run: return the listing without them, and their number.

    Those that have a row are listed as the row has them, so that it is carried over.
    """
    is_young = pc.fill_null(pc.and_(pc.greater(listing["mtime"], since), pc.less(listing["mtime"], until)), False)
    young, listing = listing.filter(is_young), listing.filter(pc.invert(is_young))
    if known is not None:
        has_row = pc.is_in(_keys(known), value_set=_keys(young).combine_chunks())
        listing = pa.concat_tables([listing, known.filter(has_row).select(LISTING.names).cast(LISTING)])
    return listing, len(young)


def rows_below(known: pa.Table, root: str, folder: str) -> pa.Table:
    """The known images, as a listing, at or below a folder of a root ("" is the root itself)."""
    inside = pc.equal(known["root"], root)
    if folder:
        inside = pc.and_(inside, pc.starts_with(known["path"], folder + "/"))
    return known.filter(inside).select(LISTING.names).cast(LISTING)


def _known_schema() -> pa.Schema:
    return pa.schema([*LISTING, *(pa.field(name, pa.string()) for name in KNOWN_COLUMNS[len(LISTING) :])])


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """Root and path as one value. NUL is the one byte no path has; large, for over 2 GB of names."""
    text = pa.large_string()
    return pc.binary_join_element_wise(table["root"].cast(text), table["path"].cast(text), pa.scalar("\0", text))


def sort_and_drop_repeated(rows: pa.Table) -> pa.Table:
    """Put rows in the order of root and path; of those with the same (a PATH given twice) keep the first."""
    rows = rows.take(pc.sort_indices(rows, [("root", "ascending"), ("path", "ascending")]))
    if len(rows) < 2:
        return rows
    keys = _one_array(_keys(rows))
    is_first = pc.not_equal(keys[1:], keys[:-1])
    return rows.filter(pa.concat_arrays([pa.array([True]), is_first]))


def _differs(now: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unequal, where null equals null."""
    one_null = pc.xor(pc.is_null(now), pc.is_null(before))
    return pc.or_(one_null, pc.fill_null(pc.not_equal(now, before), False))


def _one_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
