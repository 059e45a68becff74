"""Which labels of one table are which of another.

Two tables have one label space when their classes are called alike, in whatever order. Others are
compared by names that somebody gives, old to new, or not at all: nothing is guessed.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

SAME_NAMES = "same"  # what --map says in place of a file: names that both have are one


@dataclass(frozen=True)
class LabelSpaces:
    """The names of both tables' classes, and which old one `becomes` which new ones (by number).

    `is_one`: both have the same names. Without `becomes` labels cannot be compared.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    is_one: bool
    becomes: dict[int, set[int]]

    def is_comparable(self) -> NDArray[np.bool_]:
        """Of each old class, whether there is a new one that it becomes."""
        known = np.zeros(len(self.old), np.bool_)
        known[list(self.becomes)] = True
        return known

    def unchanged(self) -> NDArray[np.int64]:
        """The `codes` of pairs of labels that mean the same, ascending."""
        pairs = [
            code * len(self.new) + other
            for code, others in self.becomes.items()
            for other in others
        ]
        return np.array(sorted(pairs), np.int64)

    def codes(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs of class numbers as one number each."""
        return old * len(self.new) + new

    def names(self, code: int) -> tuple[str, str]:
        """The names of a pair, old and new."""
        old, new = divmod(code, len(self.new))
        return self.old[old], self.new[new]

    @property
    def n_shared(self) -> int:
        """How many names both have."""
        return len(set(self.old) & set(self.new))


def label_spaces(old: Sequence[str], new: Sequence[str], mapping: str | None) -> LabelSpaces:
    """Say which labels are the same. `mapping` is a file's name, SAME_NAMES or None.

    Raises UsageError for a file that cannot be used, or where there is nothing to map.
    """
    numbers: dict[str, int] = {}
    for number, name in enumerate(new):
        numbers.setdefault(name, number)
    is_one = set(old) == set(new)
    if mapping is not None and is_one:
        raise UsageError("both tables have the same classes; leave --map out")
    if mapping in (None, SAME_NAMES):
        pairs = (
            [(name, name) for name in old if name in numbers]
            if is_one or mapping == SAME_NAMES
            else []
        )
        if mapping == SAME_NAMES and not pairs:
            raise UsageError("--map same: no name of a class is in both tables; name a file")
    else:
        assert mapping is not None
        pairs = _read(Path(mapping))
        _check(pairs, mapping, old, new)
    becomes: dict[int, set[int]] = {}
    firsts = {name: number for number, name in reversed(list(enumerate(old)))}
    for before, after in pairs:
        becomes.setdefault(firsts[before], set()).add(numbers[after])
    return LabelSpaces(tuple(old), tuple(new), is_one, becomes)


def _check(
    pairs: list[tuple[str, str]], where: str, old: Sequence[str], new: Sequence[str]
) -> None:
    """Refuse names that no class has: a typing error would leave rows out without a word."""
    for side, names, known in (
        ("old", [pair[0] for pair in pairs], set(old)),
        ("new", [pair[1] for pair in pairs], set(new)),
    ):
        unknown = [name for name in dict.fromkeys(names) if name not in known]
        if unknown:
            shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
            raise UsageError(
                f"--map {where}: the {side} table has no class {shown}; it takes old names and "
                "what they are called in the new table"
            )


def _read(path: Path) -> list[tuple[str, str]]:
    """Read pairs of names, old and new, of a CSV or JSON file. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--map {path} cannot be read: {reason}") from error
    try:
        pairs = list(_from_json(text) if text.lstrip().startswith("{") else _from_csv(text))
    except (ValueError, csv.Error) as error:
        raise UsageError(
            f"--map {path}: {error}; it holds lines OLD NAME,NEW NAME (CSV), or a JSON object of "
            "old names with a new name, or a list of them, each"
        ) from error
    if not pairs:
        raise UsageError(f"--map {path} holds no names")
    return pairs


def _from_csv(text: str) -> Iterator[tuple[str, str]]:
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(row)]
    for number, row in enumerate(rows):
        if number == 0 and [cell.strip().lower() for cell in row] == ["old", "new"]:
            continue  # a heading
        if len(row) != 2:
            raise ValueError(f"row {number + 1} has {len(row)} values instead of 2")
        yield row[0].strip(), row[1].strip()


def _from_json(text: str) -> Iterator[tuple[str, str]]:
    for old, new in json.loads(text).items():
        names = new if isinstance(new, list) else [new]
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"{old!r} has {name!r}, which is no name")
            yield old, name
