"""How much a host phase varies from one time to the next, as draws that are the same on every machine.

What slows a process down for one phase of a step slows the others down, too, and the steps that follow:
draws of one process have a part in common, whose components last for more or fewer steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

PLACES = 256  # a draw is one of so many equally probable factors
_DRAW_BITS = PLACES.bit_length() - 1
LEAST_FACTOR = 0.2
QUANTILES = (0.1, 0.5, 0.9)  # by which host tables describe a spread

Factors = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Equally probable factors, ascending; the last ``stalls`` of them are as probable at any time."""

    factors: Factors
    stalls: int

    @classmethod
    def of(cls, quantiles: Sequence[float], positive: bool = True) -> Spread:
        """See `factors`."""
        return cls(factors(quantiles, positive), _stalls_among(quantiles))


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
    stalls = _stalls(middle, of_stalls[1], _stalls_among(spread)) if of_stalls else []
    usual = PLACES - len(stalls)
    drawn = []
    for z in _scores(usual):
        value = middle + z * ((high - middle) if z > 0 else (middle - low))
        drawn.append(max(value, LEAST_FACTOR * middle) if positive else value)
    return (*drawn, *stalls)


@cache
def _scores(count: int) -> Sequence[float]:
    """Normal deviates, equally probable, relative to that of the last quantile."""
    normal = NormalDist()
    at_90 = normal.inv_cdf(QUANTILES[-1])
    return [normal.inv_cdf((place + 0.5) / count) / at_90 for place in range(count)]


def _stalls_among(spread: Sequence[float]) -> int:
    return round(spread[len(QUANTILES)] * PLACES) if len(spread) > len(QUANTILES) else 0


class CommonDraws:
    """Normal deviates that phases of a process have in common.

    Args:
        seed: of a process; no two draw the same.
        shares: of the variance of a phase's deviates, by for how many steps a component lasts.
        opposite: draws the opposite of what the seed draws.
    """

    def __init__(self, seed: str, shares: Mapping[int, float], opposite: bool = False) -> None:
        sign = -1.0 if opposite else 1.0
        self._parts = [
            (steps, sign * math.sqrt(share), random.Random(f"{seed} {steps}").gauss, list[float]())
            for steps, share in shares.items()
        ]
        self.own_weight = math.sqrt(max(0.0, 1.0 - sum(shares.values())))

    def at(self, step: int) -> float:
        """The common part of the deviates of a step, of which the process may have seen any before."""
        total = 0.0
        for steps, weight, gauss, drawn in self._parts:
            place = step // steps
            while place >= len(drawn):
                drawn.append(gauss(0.0, 1.0))
            total += weight * drawn[place]
        return total


class PhaseDraws:
    """Draws of one phase from its spreads, which it has by kinds of steps.

    Args:
        seed: of the phase.
        common: what it has in common with other phases that each step has once; None: nothing.
    """

    def __init__(self, seed: str, common: CommonDraws | None) -> None:
        self._random = random.Random(seed)
        self._common = common
        self._step = 0

    def factor(self, spread: Spread | None) -> float:
        """For the next step, of whose kind this is the spread."""
        step = self._step
        self._step += 1
        if spread is None:
            return 1.0
        place = self._random.getrandbits(_DRAW_BITS)
        usual = PLACES - spread.stalls
        if self._common is not None and place < usual:
            deviate = self._common.own_weight * self._random.gauss(0.0, 1.0) + self._common.at(step)
            place = min(int(usual * _below(deviate)), usual - 1)
        return spread.factors[place]


def _below(deviate: float) -> float:
    """Probability that a normal deviate is less than this one."""
    return 0.5 * (1.0 + math.erf(deviate * math.sqrt(0.5)))


def _stalls(middle: float, mean: float, count: int) -> list[float]:
    quantiles = [-math.log(1.0 - (place + 0.5) / count) for place in range(count)]
    return [middle + (mean - middle) * count * quantile / sum(quantiles) for quantile in quantiles]
