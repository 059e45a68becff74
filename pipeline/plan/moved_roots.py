"""Photos that moved or were copied, as a comparison sees them: roots with another name, whose rows are
carried over under that (jobs/moved.py), and rows that may give their labels to new images
(jobs/donors.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.donors import count_likely, make_donors, may_give
from jobs.keys import one_array
from jobs.moved import find_moved, move_rows, order_after, ranges_of_roots
from jobs.plan import Plan
from jobs.storage.object_store import AnyPath
from pipeline.find.found import Scan
from pipeline.find.scan import root_of
from pipeline.path_names import display
from pipeline.settings import Settings
from pipeline.table.labels import LABELS
from pipeline.table.partitioned import rows_by_number
from pipeline.table.record import TableRecord


@dataclass(frozen=True)
class MovedRoots:
    """`names` are the roots that moved, old to new; `order` the table's row numbers in the order of the
    new names, None where that is the table's.
    """

    names: dict[str, str] = field(default_factory=dict)
    order: np.ndarray | None = None

    def rows(self, table: pa.Table | None) -> pa.Table | None:
        """Rows of the table as if they had been written under the new names."""
        if table is None or not self.names:
            return table
        return move_rows(table if self.order is None else table.take(self.order), self.names)

    def in_order(self, values: pa.Array) -> pa.Array:
        """What there is for each row of the table, in the order of the new names."""
        return values if self.order is None else values.take(pa.array(self.order))

    def mounts(self, mounts: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The (root, folder) that were mount points, by the new names."""
        return [(self.names.get(root, root), folder) for root, folder in mounts]

    def of_table(self, plan: Plan, known: pa.Table) -> Plan:
        """A plan made for `known`, the rows under their new names, as one for the table."""
        roots, kept = ranges_of_roots(known), plan.kept.to_numpy()
        n_kept = {}
        for old, new in self.names.items():
            first, n = roots[new]
            lo, hi = np.searchsorted(kept, [first, first + n])
            n_kept[old] = int(hi - lo)
        plan.counts["moved"] = sum(n_kept.values())
        moved = {old: new for old, new in self.names.items() if n_kept[old]}
        order = self.order
        return replace(
            plan, moved=moved, kept=plan.kept if order is None else pa.array(order[kept])
        )


def find_moved_roots(
    listing: pa.Table,
    table: pa.Table | None,
    settings: Settings,
    found: Scan,
    unseen_rows: Callable[[], pa.Array | None],
) -> MovedRoots:
    """Find the roots of a table's rows that moved. `unseen_rows` tells which rows would be kept, if
    none had, since what they are of cannot be looked at.
    """
    if table is None or settings.restart:
        return MovedRoots()
    # The folder of an archive that a PATH names, and that need not be looked into, lists nothing.
    named = {*found.folders, *(root for root, _ in found.unchanged)}
    named |= {display(root_of(path)) for path in settings.paths}
    names = find_moved(listing, table, named)
    if names and (unseen := unseen_rows()) is not None:
        # They are not gone: what is elsewhere is a copy, and may lack some of their images.
        named |= {*pc.unique(table["root"].filter(unseen)).to_pylist()}
        names = find_moved(listing, table, named)
    return MovedRoots(names, order_after(table, names) if names else None)


def with_donors(
    plan: Plan,
    table: pa.Table,
    place: AnyPath,
    record: TableRecord,
    fingerprint: str,
    beside: Mapping[str, pa.Array],
) -> Plan:
    """The plan with the rows of the table at `place` that may give their labels to new images.
    `beside` has, for each other product, its row for each row of the table.
    """
    if record.fingerprint != fingerprint or "content_hash" not in record.schema.names:
        return plan
    rows = may_give(plan.pending, table, fingerprint)
    if not len(rows):
        return plan
    tables = rows_by_number(LABELS, place, rows.to_numpy(), ["content_hash"])
    hashes = pa.concat_tables(tables)["content_hash"]
    donors = make_donors(rows, hashes, {name: each.take(rows) for name, each in beside.items()})
    if not len(donors):
        return plan
    plan.counts["reused"] = count_likely(plan.pending, table, one_array(donors[LABELS.name]))
    return replace(plan, donors=donors)
