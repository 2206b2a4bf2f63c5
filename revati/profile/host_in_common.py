"""What the phases of a process have in common, and one step with those that follow it.

Whatever slows a process down, neighbours on its core or in its caches, slows all of its phases down, and
for more than one step.  How much of their variance is in common for how many steps follows from how deviates
correlate: between phases of one step, and between steps so many apart.  Deviates are normal scores, so that
neither the form of a spread nor single stalls matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]
from scipy.stats import rankdata  # type: ignore[import-untyped]

from revati.profile.host_logs import Array

Mask = npt.NDArray[np.bool_]

# Steps that a component lasts; where one ends, the next one has nothing to do with it.
LASTS = (1, 4, 24, 150)
LAGS = (0, 1, 2, 3, 5, 10, 20, 40, 80, 160)
LEAST_PAIRS = 100
_DIGITS = 3


def deviates(cost_us: Array, requests: Array) -> Array:
    """Normal scores of what a phase cost in each step, beside its like of so many requests; NaN stays NaN."""
    known = np.isfinite(cost_us) & (cost_us > 0)
    result = np.full(len(cost_us), np.nan)
    if known.sum() < LEAST_PAIRS:
        return result
    cost = np.log(cost_us[known])
    relative = cost - np.polyval(np.polyfit(requests[known], cost, 2), requests[known])
    inverse = np.vectorize(NormalDist().inv_cdf)
    result[known] = inverse((rankdata(relative) - 0.5) / len(relative))
    return result


def correlations(phases: Sequence[Array]) -> Array:
    """By `LAGS`, means over phases of one process: at lag 0 between two of them, else of each with itself.

    Args:
        phases: deviates by step, of each phase.
    """
    between = [_mean_product(a, b) for i, a in enumerate(phases) for b in phases[:i]]
    later = [[_mean_product(one[:-lag], one[lag:]) for one in phases] for lag in LAGS[1:]]
    return np.array([float(np.mean(found)) if found else np.nan for found in (between, *later)])


def of_decodes(costs_us: Iterable[Array], requests: Array, launched: Mask, decode: Mask) -> Array:
    """`correlations` of decodes among the steps that launched something.

    Args:
        costs_us: of each phase, by step.
        requests: by step, as the others.
    """
    counts = requests[launched].astype(np.float64)
    return correlations([deviates(np.where(decode, us, np.nan)[launched], counts) for us in costs_us])


def shares(found: Iterable[Array]) -> dict[int, float]:
    """Shares of the variance by how long they last, from the medians of several runs' `correlations`."""
    median = np.nanmedian(np.stack(list(found)), axis=0)
    lags, lasts = np.array(LAGS)[:, None], np.array(LASTS)
    weights, _ = nnls(np.maximum(0.0, 1.0 - lags / lasts), median)
    return {
        last: round(float(weight), _DIGITS) for last, weight in zip(LASTS, weights, strict=True) if weight
    }


def _mean_product(a: Array, b: Array) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.mean(a[known] * b[known])) if known.sum() >= LEAST_PAIRS else np.nan
