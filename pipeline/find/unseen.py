"""What a run cannot look at: a folder that may not be read, a PATH or a list that is empty all at
once.

Nothing says that the images there are gone, most likely something is not mounted: the rows of the
table stay as they are, the run says so and has an exit code of its own. `--forget FOLDER` drops
them. Pure: works on what the scan found and on the rows known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.plan import KNOWN, range_below
from pipeline.path_names import printable


@dataclass(frozen=True)
class Unseen:
    """`reasons` says what could not be looked at, a line each; `rows` (bool, one a known row) which
    rows those are of.

    `forgotten` counts the rows that would be among them without --forget.
    """

    reasons: list[str]
    rows: pa.Array | None = None
    forgotten: int = 0

    @property
    def n_rows(self) -> int:
        return 0 if self.rows is None else int(pc.sum(self.rows).as_py() or 0)


def find_unseen(
    known: pa.Table | None,
    unlisted: Mapping[tuple[str, str], str],
    empty: Mapping[str, tuple[str, str]],
    missing_list: str | None,
    roots: Sequence[str],
    forget: Sequence[str],
) -> Unseen:
    """Find the rows of `known` (in order) that nothing can be said of.

    `unlisted` are (root, folder) that could not be read, with the reason; `empty` the `roots`
    without an image, with the (root, folder) that their rows are under; `missing_list` what is
    wrong with the list of files: then all rows of no root are unseen. Rows at or below the folders
    `forget` are not kept.
    """
    reasons: list[str] = []
    known = KNOWN.empty_table() if known is None else known
    rows = np.zeros(len(known), bool)
    for (root, folder), why in unlisted.items():
        place = f"{root}/{folder}".rstrip("/")
        start, end = range_below(known, root, folder)
        rows[start:end] = True
        if not any(_is_below(place, each) for each in forget):
            reasons.append(f"cannot look into {printable(place)}: {why}")
    for root, place_of_rows in sorted(empty.items()):
        start, end = range_below(known, *place_of_rows)
        rows[start:end] = True
        if end > start and not any(_is_below(root, each) for each in forget):
            reasons.append(
                f"{printable(root)} holds no image any more, as if nothing were mounted there"
            )
    if missing_list:
        is_of_a_root = pc.is_in(
            known["root"].cast(pa.string()), value_set=pa.array(roots, pa.string())
        )
        rows |= ~is_of_a_root.to_numpy()
        reasons.append(missing_list)
    before = int(rows.sum())
    for root, folder in _forgotten(known, forget):
        start, end = range_below(known, root, folder)
        rows[start:end] = False
    left = int(rows.sum())
    return Unseen(reasons, pa.array(rows) if left else None, before - left)


def _is_below(place: str, folder: str) -> bool:
    return f"{place.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _forgotten(known: pa.Table, forget: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each (root, folder below it) of which a folder to forget has rows."""
    roots = pc.unique(known["root"]).to_pylist() if forget else []
    for folder in forget:
        for root in roots:
            if _is_below(root, folder):
                yield root, ""
            elif _is_below(folder, root):
                yield root, folder[len(root.rstrip("/")) + 1 :]
