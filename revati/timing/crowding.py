"""How much longer a product takes beside a broadcast that waits for its source.

The waiting kernel holds one SM, so that a product whose tiles fill the GPU takes a wave more (vLLM's FP8
products up to 1.9 times as long, since their tiles are dealt out beforehand). The stages of a vLLM pipeline
but the last wait so for the sampled tokens while they compute the next batch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from revati.timing import db

_ALIKE = {"float16": "bfloat16"}  # cuBLAS has the same tiles for both


class Crowded(NamedTuple):
    """A product of m tokens and width n, alone and beside a broadcast that waits."""

    dtype: str
    n: int
    m: int
    alone_us: float
    beside_us: float


def measured_products(measured: pa.Table) -> list[Crowded]:
    """What a database has of them."""
    times_us: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in db.rows(measured, ["dtype", "n", "m", "variant", "median_us"], kind="crowded"):
        times_us.setdefault((row["dtype"], row["n"], row["m"]), {})[row["variant"]] = row["median_us"]
    return [Crowded(*product, us["alone"], us["broadcast"]) for product, us in times_us.items()]


class CrowdingModel:
    """Ratios over m by width n; they depend on the number of tiles of the result, not on k."""

    def __init__(self, products: Iterable[Crowded]) -> None:
        curves: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for dtype, n, m, alone_us, beside_us in products:
            curves.setdefault((dtype, n), []).append((m, max(1.0, beside_us / alone_us)))
        self._curves = {key: sorted(found) for key, found in curves.items()}
        self._widths: dict[str, list[int]] = {}
        for dtype, n in sorted(curves):
            self._widths.setdefault(dtype, []).append(n)

    def ratio(self, m: int, n: int, dtype: str) -> float:
        """Time beside a waiting broadcast over time alone; 1 for a data type that nobody measured.

        A width in between is answered by its neighbours' results of the same size.
        """
        dtype = _ALIKE.get(dtype, dtype)
        widths = self._widths.get(dtype, [])
        if not widths:
            return 1.0
        i = bisect.bisect_left(widths, n)
        if i == len(widths) or i == 0 or widths[i] == n:
            nearest = widths[min(i, len(widths) - 1)]
            return self._along(dtype, nearest, m * n / nearest)
        low, high = widths[i - 1], widths[i]
        share = math.log(n / low) / math.log(high / low)
        below, above = (self._along(dtype, width, m * n / width) for width in (low, high))
        return (1.0 - share) * below + share * above

    def _along(self, dtype: str, n: int, m: float) -> float:
        tokens, ratios = zip(*self._curves[dtype, n], strict=True)
        return float(np.interp(m, tokens, ratios))
