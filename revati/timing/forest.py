"""Several sets of boosted trees over the same features, evaluated at once in microseconds.

Every inner node is one test ``x[feature] <= threshold``.  A failed test rules out the leaves on the node's
left; what a tree answers is its leftmost leaf that nothing rules out (QuickScorer, Lucchese et al. 2015).
All that the tests of one feature rule out depends only on where ``x`` lies among its thresholds, so it is
tabulated: a row of leaf masks, one per tree, for each such place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from revati.timing.trees import Trees

MOST_LEAVES = 31  # a mask is one int32


class Forest:
    """Answers ``[trees.predict(row) for trees in sets]``.

    Raises:
        ValueError: a tree has more leaves than a mask has bits.
    """

    def __init__(self, sets: Sequence[Trees], num_features: int) -> None:
        self._bases = [trees.base for trees in sets]
        counts = [len(trees.roots) for trees in sets]
        self._starts = np.cumsum([0, *counts[:-1]])
        self._values = np.zeros((sum(counts), MOST_LEAVES + 1))
        tests: list[list[tuple[float, int, int]]] = [[] for _ in range(num_features)]  # threshold, tree, mask
        tree = 0
        for trees in sets:
            for root in trees.roots:
                self._read(trees, int(root), tree, tests)
                tree += 1
        self._thresholds: list[list[float]] = []
        self._offsets: list[int] = []
        masks, at = [], 0
        for own in tests:
            own.sort()
            failed = np.full((len(own) + 1, tree), (1 << MOST_LEAVES) - 1, dtype=np.int32)
            for i, (_, which, mask) in enumerate(own):
                failed[i + 1, which] = mask
            masks.append(np.bitwise_and.accumulate(failed, axis=0))
            self._thresholds.append([threshold for threshold, _, _ in own])
            self._offsets.append(at)
            at += len(failed)
        self._masks = np.concatenate(masks)
        self._row_of = np.arange(tree) * (MOST_LEAVES + 1)
        self._flat_values = self._values.ravel()

    def predict(self, row: Sequence[float]) -> list[float]:
        """One answer for each set of trees; ``row`` holds the features."""
        places = [
            offset + bisect_left(thresholds, x)  # tests with a threshold below x fail
            for offset, thresholds, x in zip(self._offsets, self._thresholds, row, strict=True)
        ]
        left = np.bitwise_and.reduce(self._masks.take(places, axis=0), axis=0)
        first = np.frexp(left)[1]  # the place of the highest bit, from 1
        sums: NDArray[np.float64] = np.add.reduceat(
            self._flat_values.take(self._row_of + first), self._starts
        )
        return [base + float(total) for base, total in zip(self._bases, sums, strict=True)]

    def _read(self, trees: Trees, root: int, tree: int, tests: list[list[tuple[float, int, int]]]) -> None:
        """Number a tree's leaves from left to right; note what each failed test rules out."""
        everything = (1 << MOST_LEAVES) - 1
        left_over = MOST_LEAVES  # leaves are numbered downwards: the leftmost one is the highest bit

        def walk(node: int) -> None:
            nonlocal left_over
            left, right = int(trees.left[node]), int(trees.right[node])
            if left == node:
                if left_over == 0:
                    raise ValueError(f"a tree has more than {MOST_LEAVES} leaves")
                self._values[tree, left_over] = trees.value[node]
                left_over -= 1
                return
            before = left_over
            walk(left)
            ruled_out = (1 << before) - (1 << left_over)
            test = float(trees.threshold[node]), tree, everything & ~ruled_out
            tests[int(trees.feature[node])].append(test)
            walk(right)

        walk(root)
