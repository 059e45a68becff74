"""The files that a frozen plan lies in, each with a digest in the manifest.

plan.arrow      the images to label, by index
kept.arrow      the rows to carry over, of each product
donors.arrow    rows that may give their labels to new images, where there are any (donors.py)
"""

from collections.abc import Mapping

import pyarrow as pa

from jobs.storage.arrow import write_arrow
from jobs.storage.atomic import remove
from jobs.storage.object_store import AnyPath

from .plan import Plan
from .receipts import LABELS, sha256_file

PENDING, KEPT, DONORS = "plan.arrow", "kept.arrow", "donors.arrow"
_ALWAYS = (PENDING, KEPT)


def write_plan(folder: AnyPath, plan: Plan) -> dict[str, str]:
    """Write a plan's files; return their sha256 by name."""
    files = {PENDING: plan.pending, KEPT: pa.table({LABELS: plan.kept, **plan.kept_of})}
    if plan.donors is not None and len(plan.donors):
        files[DONORS] = plan.donors
    for name, table in files.items():
        write_arrow(folder / name, table)
    return {name: sha256_file(folder / name) for name in files}


def is_there(folder: AnyPath) -> bool:
    return all((folder / name).is_file() for name in _ALWAYS)


def is_as_written(folder: AnyPath, digests: Mapping[str, str]) -> bool:
    """Whether the files are those with these digests, to the byte."""
    return (
        digests.keys() >= {*_ALWAYS}
        and all((folder / name).is_file() for name in digests)
        and all(sha256_file(folder / name) == digest for name, digest in digests.items())
    )


def remove_plan(folder: AnyPath) -> None:
    for name in (PENDING, KEPT, DONORS):
        remove(folder / name)
