"""GEMM durations: out[m, n] = a[m, k] @ w[n, k]^T with cold weights, as in a decoder layer."""

from __future__ import annotations

import bisect
import math
from dataclasses import replace

import numpy as np

from revati.timing.curve import Curve
from revati.timing.estimate import Estimate, dtype_bytes, weaker
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import gemm_bytes, roofline

NEIGHBOURS = 4
EFFICIENCY_REL_STD = 0.12
RECTANGLE_REL_STD = 0.08
# Longer products met the power limit while they were measured; what that does to them is modelled where
# they run (`power`), so here their rate is that of the longest product at full clock. Where it is not
# modelled, they take what they took.
FULL_CLOCK_TOKENS = 4096
# For many tokens most of cuBLAS's tiles are 128 tokens high; for few it has kernels of many heights.
TILE_TOKENS = 128
UNTILED_TOKENS = 512
# At some sizes (832, 448 tokens) cuBLAS's heuristics choose a kernel that takes half as long again as that of
# a larger product. Their neighbours get other kernels.
POOR_CHOICE = 1.05
Key = tuple[int, int, str]  # n, k, dtype
# Before a large product cuBLAS clears its workspace, after one that is split along k it sums up.
Launches = dict[Key, list[tuple[int, int]]]  # (m, number of launches)


class TokenCurve:
    """A weight shape's durations over m: as measured where they were, interpolated in between."""

    def __init__(self, measured: Curve) -> None:
        self._measured = measured
        least_us, usual_us = math.inf, []
        for us in reversed(measured.duration_us):
            least_us = min(us, least_us)
            usual_us.append(us if us <= POOR_CHOICE * least_us else least_us)
        self._usual = Curve(measured.at, tuple(reversed(usual_us)))

    def estimate(self, m: int) -> Estimate:
        """In between on a line, for many tokens halfway to a neighbour in the same row of tiles."""
        at = self._measured.at
        i = bisect.bisect_left(at, m)
        if i < len(at) and at[i] == m:
            return self._measured.estimate(m, "gemm")
        between = self._usual.estimate(m, "gemm")
        if m > UNTILED_TOKENS and 0 < i < len(at):
            for neighbour in (i, i - 1):
                if _row(int(at[neighbour])) == _row(m):
                    same_row_us = self._usual.duration_us[neighbour]
                    return replace(between, duration_us=0.5 * (between.duration_us + same_row_us))
        return between


def _row(m: int) -> int:
    """The last of a product's rows of tiles."""
    return -(-m // TILE_TOKENS)


class GemmModel:
    """Measured curves over m per weight shape; other shapes borrow the efficiency of similar ones.

    Efficiency is the roofline's time (bytes or FLOPs, at the datasheet's rates) over the measured time.
    It varies slowly with n and k at a given m, so the measured shapes around (log n, log k) tell it: the
    corners of a rectangle where they form a grid, else the nearest ones.

    Args:
        launches: how many launches each product took; one where nothing is said.
    """

    def __init__(
        self, limits: GpuLimits, points: dict[Key, list[tuple[int, float]]], launches: Launches | None = None
    ) -> None:
        self._limits = limits
        self._launches = {key: sorted(found) for key, found in (launches or {}).items()}
        self._curves = {
            key: TokenCurve(Curve.from_points([(float(m), us) for m, us in found]))
            for key, found in points.items()
        }
        self._shapes = {
            dtype: [key for key in self._curves if key[2] == dtype] for dtype in {k[2] for k in self._curves}
        }

    def estimate(self, m: int, n: int, k: int, dtype: str, out_dtype: str) -> Estimate:
        """At the GPU's full clock."""
        dtype = dtype.removeprefix("torch.")
        tokens = min(m, FULL_CLOCK_TOKENS) if self._limits.power_modelled else m
        alone = self._estimate(tokens, n, k, dtype, out_dtype)
        provenance = alone.provenance if tokens == m else weaker(alone.provenance, "interpolated")
        flops = 2.0 * m * n * k
        nbytes = float(gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype)))
        launches = self._launches_of(m, n, k, dtype)
        return Estimate(
            alone.duration_us * m / tokens, provenance, alone.rel_std, "gemm", flops, nbytes, launches
        )

    def _launches_of(self, m: int, n: int, k: int, dtype: str) -> int:
        """Those of the next larger product that was measured, of the most similar weights."""
        key = (n, k, dtype)
        if key not in self._launches and self._shapes.get(dtype):
            key = self._nearest(n, k, dtype)[0][0]
        known = self._launches.get(key)
        if not known:
            return 1
        return known[min(bisect.bisect_left(known, (m, 0)), len(known) - 1)][1]

    def _estimate(self, m: int, n: int, k: int, dtype: str, out_dtype: str) -> Estimate:
        curve = self._curves.get((n, k, dtype))
        if curve is not None:
            return curve.estimate(m)
        if self._shapes.get(dtype):
            return self._from_similar(m, n, k, dtype)
        flops = 2.0 * m * n * k
        return roofline(
            self._limits, "gemm", flops, gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype))
        )

    def _from_similar(self, m: int, n: int, k: int, dtype: str) -> Estimate:
        between = self._rectangle(n, k, dtype)
        weighted = between or self._nearest(n, k, dtype)
        logs = [self._log_efficiency(m, shape) for shape, _ in weighted]
        weights = [weight for _, weight in weighted]
        duration_us = self._ideal_us(m, n, k, dtype) / math.exp(float(np.average(logs, weights=weights)))
        if between:
            return Estimate(duration_us, "interpolated", RECTANGLE_REL_STD, "gemm")
        return Estimate(duration_us, "extrapolated", EFFICIENCY_REL_STD + float(np.std(logs)), "gemm")

    def _rectangle(self, n: int, k: int, dtype: str) -> list[tuple[Key, float]]:
        """The four measured shapes around (n, k) and their bilinear weights; empty unless all are there."""
        shapes = self._shapes[dtype]
        rows, columns = _around({shape[0] for shape in shapes}, n), _around({shape[1] for shape in shapes}, k)
        corners = [((a, b, dtype), wa * wb) for a, wa in rows for b, wb in columns]
        return corners if all(shape in self._curves for shape, _ in corners) else []

    def _nearest(self, n: int, k: int, dtype: str) -> list[tuple[Key, float]]:
        shapes = self._shapes[dtype]
        sizes = np.array([shape[:2] for shape in shapes], dtype=np.float64)
        distance = np.linalg.norm(np.log(sizes / (n, k)), axis=1)
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        return [(shapes[int(i)], 1.0 / (float(distance[i]) + 1e-3) ** 2) for i in nearest]

    def _log_efficiency(self, m: int, shape: Key) -> float:
        n, k, dtype = shape
        return math.log(self._ideal_us(m, n, k, dtype) / self._curves[shape].estimate(m).duration_us)

    def _ideal_us(self, m: int, n: int, k: int, dtype: str) -> float:
        size = dtype_bytes(dtype)
        bytes_us = gemm_bytes(m, n, k, size, size) / self._limits.memory_bytes_per_us
        return bytes_us + 2.0 * m * n * k / self._limits.bf16_flop_per_us


def _around(known: set[int], size: int) -> list[tuple[int, float]]:
    """The measured sizes next to ``size`` and their weights; one if it is known, none outside of them."""
    if size in known:
        return [(size, 1.0)]
    ordered = sorted(known)
    i = bisect.bisect_left(ordered, size)
    if not 0 < i < len(ordered):
        return []
    low, high = ordered[i - 1], ordered[i]
    share = math.log(size / low) / math.log(high / low)
    return [(low, 1.0 - share), (high, share)]
