"""Where to measure next on a curve: where interpolation between the measured points is least sure.

A GEMM's time over tokens is flat inside a tile and jumps at its edges, and where another kernel or wave
begins. A coarse pass finds the straight parts; further points go to both sides of the places that a line
between their neighbours misses most, until the lines fit or the points run out.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
Point = tuple[int, float]  # tokens, duration in µs
Measure = Callable[[list[tuple[int, int]], list[int]], list[Row]]  # weight shapes, tokens → rows

TOLERANCE = 0.02  # relative; about what two measurements of one point differ by
ROUNDS = 4


def misses(points: Sequence[Point]) -> list[float]:
    """By how much (relative) a line between its neighbours misses each point; 0 for the ends."""
    found = [0.0] * len(points)
    for i in range(1, len(points) - 1):
        (low, below), (at, us), (high, above) = points[i - 1 : i + 2]
        share = (at - low) / (high - low)
        found[i] = abs(below + share * (above - below) - us) / us
    return found


def next_tokens(
    points: Sequence[Point], candidates: Iterable[int], tolerance: float = TOLERANCE
) -> list[int]:
    """The candidate nearest to the middle of each interval that has a missed point at one of its ends."""
    ordered = sorted(points)
    missed = misses(ordered)
    free = sorted(set(candidates) - {at for at, _ in ordered})
    chosen = []
    for i, ((low, _), (high, _)) in enumerate(pairwise(ordered)):
        if max(missed[i], missed[i + 1]) <= tolerance:
            continue
        inside = free[bisect.bisect_right(free, low) : bisect.bisect_left(free, high)]
        if inside:
            chosen.append(min(inside, key=lambda at: abs(2 * at - low - high)))
    return chosen


def measure_curves(
    shapes: list[tuple[int, int]], coarse: list[int], candidates: list[int], measure: Measure
) -> list[Row]:
    """Rows of all shapes at the coarse points, and of each shape where its curve bends."""
    if not shapes:
        return []
    rows = measure(shapes, coarse)
    for _ in range(ROUNDS):
        curves: dict[tuple[int, int], list[Point]] = {shape: [] for shape in shapes}
        for row in rows:
            curves[row["n"], row["k"]].append((row["m"], row["median_us"]))
        wanted = {shape: next_tokens(points, candidates) for shape, points in curves.items()}
        if not any(wanted.values()):
            break
        for shape, tokens in wanted.items():
            if tokens:
                rows += measure([shape], tokens)
    return rows
