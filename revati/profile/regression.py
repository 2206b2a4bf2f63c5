"""Median regression with coefficients that are never negative."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]

Array = npt.NDArray[np.float64]


def least_absolute_relative(features: Array, cost: Array) -> Array:
    """Non-negative coefficients that minimise the sum of |cost / prediction - 1|: a median fit.

    Few large batches count as much as many small ones: every observation is weighted by the inverse root
    of how often its features occur.
    """
    scale = np.maximum(features.max(axis=0), 1e-9)
    _, inverse, counts = np.unique(np.round(features, 3), axis=0, return_inverse=True, return_counts=True)
    rarity = 1.0 / np.sqrt(counts[inverse.ravel()])
    scaled, expected = features / scale, cost.copy()
    coefficients: Array = np.zeros(features.shape[1])
    for _ in range(40):
        residual = np.abs(cost - scaled @ coefficients) / expected
        root = np.sqrt(rarity / np.maximum(residual, 1e-3)) / expected
        coefficients, _ = nnls(scaled * root[:, None], cost * root)
        # Relative to the prediction, not to the observation: else a low prediction always wins.
        expected = np.maximum(scaled @ coefficients, 1e-3)
    result: Array = coefficients / scale
    return result
