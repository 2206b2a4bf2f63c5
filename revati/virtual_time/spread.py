"""How much a host phase varies from one time to the next, as draws that are the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

PLACES = 256  # a draw is one of so many equally probable factors
LEAST_FACTOR = 0.2
QUANTILES = (0.1, 0.5, 0.9)  # by which host tables describe a spread

Factors = tuple[float, ...]


def factors(spread: Sequence[float], positive: bool = True) -> Factors:
    """`PLACES` equally probable factors on what a table says, ascending.

    Args:
        spread: the `QUANTILES` of a cost relative to the table; a normal distribution with a width of its own
            on each side of the median is laid through them. Of a host that stalls two more numbers: which
            share of the times it does, and what such a time costs in the mean, relative to the table; what
            stalls add is distributed exponentially.
        positive: costs cannot fall below a share of the median.
    """
    low, middle, high, *of_stalls = spread
    stalls = _stalls(middle, *of_stalls) if of_stalls else []
    usual = PLACES - len(stalls)
    normal = NormalDist()
    at_90 = normal.inv_cdf(QUANTILES[-1])
    drawn = []
    for place in range(usual):
        z = normal.inv_cdf((place + 0.5) / usual) / at_90
        value = middle + z * ((high - middle) if z > 0 else (middle - low))
        drawn.append(max(value, LEAST_FACTOR * middle) if positive else value)
    return (*drawn, *stalls)


def _stalls(middle: float, share: float, mean: float) -> list[float]:
    count = round(share * PLACES)
    quantiles = [-math.log(1.0 - (place + 0.5) / count) for place in range(count)]
    return [middle + (mean - middle) * count * quantile / sum(quantiles) for quantile in quantiles]
