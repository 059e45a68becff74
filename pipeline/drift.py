"""Drift: how the labels of new photos differ from those of the photos before, in one number a night.

The class mix is the share that each class has of the labelled rows, by their best class. Two mixes
are compared by the Jensen-Shannon distance: the square root of the Jensen-Shannon divergence in
bits (Lin 1991; Endres and Schindelin 2003), 0 for equal mixes and 1 for mixes without a common
class. Of samples it comes out too large, the more so the fewer rows and the more classes there are:
100 rows of 200 classes lie some 0.5 from their own source. So as many rows as there are of each are
drawn, many times, from both together, as if nothing had changed: the mean of those divergences is
taken off, and what the distance stays below in 99 of 100 such draws is told beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .so_many import so_many

LEAST_ROWS = 100  # of each: fewer say nothing
_DRAWS = 300
_CLASSES_TOLD = 5


@dataclass(frozen=True)
class ClassMix:
    """How many labelled rows have each class as their best, int64 [K], and the sum of its
    probabilities.
    """

    rows: NDArray[np.int64]
    probability_sum: float

    @property
    def n_rows(self) -> int:
        return int(self.rows.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        return self.rows / max(self.n_rows, 1)

    @property
    def mean_probability(self) -> float | None:
        return self.probability_sum / self.n_rows if self.n_rows else None

    def without(self, part: "ClassMix") -> "ClassMix":
        """The mix of the rows that are not of `part`, which is a part of these."""
        return ClassMix(self.rows - part.rows, self.probability_sum - part.probability_sum)


@dataclass(frozen=True)
class Drift:
    """Of `new_rows`, labelled photos that a run found new or changed, and of the `earlier_rows` of
    the table, by the same model.

    `distance` is the Jensen-Shannon distance of their class mixes, base 2, corrected for the number
    of rows; None where there are too few. `by_chance`: what it stays below in 99 of 100 nights in
    which nothing changed. `classes` are those whose share changed most: label, before, now.
    """

    new_rows: int
    earlier_rows: int
    new_mean_probability: float | None = None
    earlier_mean_probability: float | None = None
    distance: float | None = None
    by_chance: float | None = None
    classes: tuple[tuple[str, float, float], ...] = ()

    def exceeds(self, limit: float | None) -> bool:
        """Whether there is more drift than a limit, and more than chance brings about."""
        if limit is None or self.distance is None or self.by_chance is None:
            return False
        return self.distance > limit and self.distance > self.by_chance

    def __str__(self) -> str:
        rows = f"{so_many(self.new_rows, 'new row')}, {self.earlier_rows:,} before"
        if self.distance is None:
            return f"drift: not known of {rows}; it takes {LEAST_ROWS} labelled ones of each"
        label, before, now = self.classes[0]
        return (
            f"drift: {self.distance:.3f} (Jensen-Shannon distance of the class mix; by chance up to "
            f"{self.by_chance:.3f}), most of {label} ({before:.1%} -> {now:.1%}); mean probability "
            f"{self.earlier_mean_probability:.3f} -> {self.new_mean_probability:.3f}; {rows}"
        )

    def to_record(self) -> dict[str, Any]:
        """For programs (docs/programs.md)."""
        return {
            "new_rows": self.new_rows,
            "earlier_rows": self.earlier_rows,
            "distance": _rounded(self.distance),
            "by_chance": _rounded(self.by_chance),
            "new_mean_probability": _rounded(self.new_mean_probability),
            "earlier_mean_probability": _rounded(self.earlier_mean_probability),
            "classes": [
                {"label": label, "earlier_share": _rounded(before), "new_share": _rounded(now)}
                for label, before, now in self.classes
            ],
        }


def measure_drift(new: ClassMix, earlier: ClassMix, labels: tuple[str, ...]) -> Drift:
    """Compare the new rows with those before; `labels` are the names of the classes [K]."""
    means = (new.mean_probability, earlier.mean_probability)
    if min(new.n_rows, earlier.n_rows) < LEAST_ROWS:
        return Drift(new.n_rows, earlier.n_rows, *means)
    chance = _by_chance(new, earlier)
    expected = float(chance.mean())
    of_chance = np.sqrt(np.maximum(chance - expected, 0))
    divergence = float(divergences(new.shares, earlier.shares))
    moved = np.argsort(-np.abs(new.shares - earlier.shares), kind="stable")[:_CLASSES_TOLD]
    return Drift(
        new.n_rows,
        earlier.n_rows,
        *means,
        distance=max(divergence - expected, 0.0) ** 0.5,
        by_chance=float(np.quantile(of_chance, 0.99)),
        classes=tuple(
            (labels[each], float(earlier.shares[each]), float(new.shares[each]))
            for each in moved.tolist()
        ),
    )


def divergences(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Jensen-Shannon divergence of mixes [..., K] in bits, 0 to 1."""
    middle = (p + q) / 2
    bits = np.zeros(middle.shape[:-1])
    for each in (p, q):
        # A class of which there is nothing adds nothing.
        ratio = np.divide(each, middle, out=np.ones_like(middle), where=each > 0)
        bits += (each * np.log2(ratio)).sum(axis=-1) / 2
    return bits


def _by_chance(new: ClassMix, earlier: ClassMix) -> NDArray[np.float64]:
    """The divergences of draws of as many rows from one mix, that of both together."""
    both = new.rows + earlier.rows
    both = both[both > 0]  # of 21,841 classes most never appear
    source = both / both.sum()
    generator = np.random.default_rng(0)  # the same rows, the same drift
    found = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        pair = [generator.multinomial(mix.n_rows, source) / mix.n_rows for mix in (new, earlier)]
        found[draw] = divergences(*pair)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
