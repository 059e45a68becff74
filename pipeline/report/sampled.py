"""Smallest: which rows of each class have the smallest values, by row number.

Of any number of rows only those are held that may still be among them. The largest are the smallest
of the negative values.
"""

import numpy as np

_PRUNE_FROM = (
    500_000  # rows held, before those are dropped that can no longer be among the smallest
)


class Smallest:
    """`n` rows of each class at most; of equal values the first rows."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._classes = np.array([], np.int64)
        self._values = np.array([], np.float64)
        self._numbers = np.array([], np.int64)
        self._prune_at = _PRUNE_FROM
        self._is_sorted = True

    def add(self, classes: np.ndarray, values: np.ndarray, numbers: np.ndarray) -> None:
        """Take in rows: `classes` int [N], `values` float [N], `numbers` int64 [N]."""
        self._classes = np.concatenate([self._classes, classes])
        self._values = np.concatenate([self._values, values])
        self._numbers = np.concatenate([self._numbers, numbers])
        self._is_sorted = False
        if len(self._numbers) > self._prune_at:
            self._prune()
            self._prune_at = max(_PRUNE_FROM, 2 * len(self._numbers))

    def of(self, class_id: int, n: int) -> list[int]:
        """The rows of a class with the smallest values, the smallest first."""
        if not self._is_sorted:
            self._prune()
        first, last = np.searchsorted(self._classes, [class_id, class_id + 1])
        return self._numbers[first:last][: min(n, self.n)].tolist()

    def _prune(self) -> None:
        order = np.lexsort((self._numbers, self._values, self._classes))
        classes = self._classes[order]
        rank = np.arange(len(order)) - np.searchsorted(classes, classes)
        order = order[rank < self.n]
        self._classes = classes[rank < self.n]
        self._values, self._numbers = self._values[order], self._numbers[order]
        self._is_sorted = True
