"""--settle: which images changed so lately that they may still be written to.

They are left for the next run, and rows that they have stay as they are (jobs.plan.hold_back). Where no
row may stay as it is, compare.py leaves none.
"""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from jobs.keys import is_among
from jobs.plan import is_young
from pipeline.settings import Settings


def young_images(settings: Settings, listing: pa.Table) -> pa.Table:
    """The images that --settle leaves for the next run; none without it."""
    now, settle = datetime.now(UTC), timedelta(seconds=settings.settle)
    if not settle:
        return listing.slice(0, 0)
    # A little into the future, too: another machine's clock may be ahead.
    return listing.filter(is_young(listing, now - settle, now + settle))


def n_left(young: pa.Table, known: pa.Table) -> int:
    """How many images have no row of the state they are in."""
    if not len(young):  # on most nights, which then need not import what joins
        return 0
    keys = ["root", "path", "size_bytes", "mtime"]
    rows = known.filter(is_among(known, young)).select(keys)
    return len(young.select(keys).join(rows, keys, join_type="left anti"))
