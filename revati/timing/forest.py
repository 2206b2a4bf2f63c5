"""Several sets of boosted trees over the same features, evaluated at once in microseconds.

Every inner node is one test ``x[feature] <= threshold``.  A failed test rules out the leaves on the node's
left; what a tree answers is its leftmost leaf that nothing rules out (QuickScorer, Lucchese et al. 2015).
All that the tests of one feature rule out depends only on where ``x`` lies among its thresholds, so it is
tabulated: a row of leaf masks, one per tree, for each such place.  Native code walks the tables
(``native/timing/attention.cpp``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from revati.timing.native import MOST_FEATURES, ForestTables, library
from revati.timing.trees import Trees

MOST_LEAVES = 31  # a mask is one int32


class Forest:
    """Answers ``[trees.predict(row) for trees in sets]``.

    Raises:
        ValueError: a tree has more leaves than a mask has bits, or there are too many features.
    """

    def __init__(self, sets: Sequence[Trees], num_features: int) -> None:
        if not 0 < num_features <= MOST_FEATURES:
            raise ValueError(f"{num_features} features; a forest has 1 to {MOST_FEATURES}")
        counts = [len(trees.roots) for trees in sets]
        self._num_features, self._num_sets = num_features, len(sets)
        self._values = np.zeros((sum(counts), MOST_LEAVES + 1))
        tests: list[list[tuple[float, int, int]]] = [[] for _ in range(num_features)]  # threshold, tree, mask
        tree = 0
        for trees in sets:
            for root in trees.roots:
                self._read(trees, int(root), tree, tests)
                tree += 1
        thresholds: list[float] = []
        ends, masks = [], []
        for own in tests:
            own.sort()
            failed = np.full((len(own) + 1, tree), (1 << MOST_LEAVES) - 1, dtype=np.int32)
            for i, (_, which, mask) in enumerate(own):
                failed[i + 1, which] = mask
            masks.append(np.bitwise_and.accumulate(failed, axis=0))
            thresholds += [threshold for threshold, _, _ in own]
            ends.append(len(thresholds))
        self._arrays: dict[str, Any] = {
            "thresholds": np.array(thresholds, dtype=np.float64),
            "ends": np.array(ends, dtype=np.int64),
            "masks": np.ascontiguousarray(np.concatenate(masks)),
            "values": self._values,
            "set_ends": np.cumsum(counts, dtype=np.int64),
            "bases": np.array([trees.base for trees in sets], dtype=np.float64),
        }
        addresses = {name: array.ctypes.data for name, array in self._arrays.items()}
        self.tables = ForestTables(features=num_features, trees=tree, sets=len(sets), **addresses)

    def predict(self, row: Sequence[float]) -> list[float]:
        """One answer for each set of trees; ``row`` holds the features."""
        features = (ctypes.c_double * self._num_features)(*row)
        answers = (ctypes.c_double * self._num_sets)()
        library.revati_forest_predict(self.tables, features, answers)
        return list(answers)

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
