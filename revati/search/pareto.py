"""Pareto fronts in pure NumPy. Lower is better throughout; negate what is to be maximised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def dominates(a: FloatArray, b: FloatArray) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better.

    Args:
        a, b: values to minimise, shape (objectives,). NaN counts as worse than anything, +inf included.
    """
    front = is_pareto_front(np.stack([a, b]))
    return bool(front[0] and not front[1])


def is_pareto_front(values: npt.ArrayLike) -> BoolArray:
    """Mark the rows that no other row dominates; equal rows do not dominate each other.

    Args:
        values: to be minimised, shape (trials, objectives), ±inf allowed. A row with a NaN is never
            on the front: an objective that was not measured cannot recommend itself.

    Returns:
        Shape (trials,).

    Raises:
        ValueError: the array has not two dimensions.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"expected shape (trials, objectives), got {points.shape}")
    measured: BoolArray = np.logical_not(np.isnan(points).any(axis=1))
    front: BoolArray = measured.copy()
    for index in np.flatnonzero(measured):
        no_worse = (points[front] <= points[index]).all(axis=1)
        better = (points[front] < points[index]).any(axis=1)
        # Dominance is transitive, so comparing with the rows still on the front is enough.
        front[index] = not (no_worse & better).any()
    return front
