"""Attention in steps of equal decodes: measured over (requests, context), interpolated in between."""

from __future__ import annotations

import bisect
from typing import Any

from revati.timing.curve import MEASURED_REL_STD
from revati.timing.estimate import Estimate, Provenance

GRID_REL_STD = 0.03

Rows = list[dict[str, Any]]


class DecodeGrid:
    """Durations of batches of equal contexts; bilinear in the logarithms between grid points."""

    def __init__(self, points: dict[tuple[int, int], float]) -> None:
        self._contexts: dict[int, tuple[list[int], list[float]]] = {}
        for (requests, context), duration_us in sorted(points.items()):
            at, us = self._contexts.setdefault(requests, ([], []))
            at.append(context)
            us.append(duration_us)
        self._requests = sorted(self._contexts)

    def estimate(self, requests: int, context: int, kind: str) -> Estimate | None:
        """None outside the measured range."""
        i = bisect.bisect_left(self._requests, requests)
        if i < len(self._requests) and self._requests[i] == requests:
            found = self._along_context(requests, context)
            if found is None:
                return None
            exact = context in self._contexts[requests][0]
            provenance: Provenance = "measured" if exact else "interpolated"
            return Estimate(found, provenance, MEASURED_REL_STD if exact else GRID_REL_STD, kind)
        if not 0 < i < len(self._requests):
            return None
        low, high = self._requests[i - 1], self._requests[i]
        below, above = self._along_context(low, context), self._along_context(high, context)
        if below is None or above is None:
            return None
        duration_us = _between(requests, low, high, below, above)
        return Estimate(duration_us, "interpolated", GRID_REL_STD, kind)

    def _along_context(self, requests: int, context: int) -> float | None:
        at, us = self._contexts[requests]
        i = bisect.bisect_left(at, context)
        if i == len(at):
            return None
        if at[i] == context or i == 0:
            return us[i]
        return _between(context, at[i - 1], at[i], us[i - 1], us[i])


def _between(x: float, low: float, high: float, below: float, above: float) -> float:
    share = (x - low) / (high - low)
    return below * (1.0 - share) + above * share


def equal_decodes(rows: Rows, kind: str, graph: bool) -> dict[tuple[int, int], float]:
    points: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["kind"] != kind or (row["variant"] == "graph") != graph:
            continue
        contexts = row["context_lens"]
        if row["num_tokens"] == row["num_reqs"] and len(set(contexts)) == 1:
            points[row["num_reqs"], contexts[0]] = row["median_us"]
    return points
