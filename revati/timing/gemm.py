"""GEMM durations: out[m, n] = a[m, k] @ w[n, k]^T with cold weights, as in a decoder layer."""

from __future__ import annotations

import bisect
import math
import sys

import numpy as np

from revati.timing.curve import Curve
from revati.timing.estimate import FP8, Estimate, dtype_bytes, weaker
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import gemm_bytes, roofline

NEIGHBOURS = 4
EFFICIENCY_REL_STD = 0.12
# What a product takes however small it is. With it, shapes that are told by others' come out 3.5 % wrong in
# the mean (H200; H100: 3.1, FP8: 4.9), without it 4.3 (3.7, 6.3), small ones short; each is best at 2.5.
STARTUP_US = 2.5
RECTANGLE_REL_STD = 0.08
# FP8 products, answered from bf16 ones, come out 14 % wrong (H200; 23 %: H100; weighted), mostly too short.
OTHER_DTYPE_REL_STD = 0.3
MEASURED_EVERYWHERE = "bfloat16"
# Longer products in bf16 met the power limit while they were measured; what that does to them is modelled
# where they run (`power`), so here their rate is that of the longest product at full clock; with rests, 8192
# tokens take twice as long as 4096 to 1.5 %. Where it is not modelled, they take what they took. FP8's were
# measured with rests, since their rate doesn't last: that of wide ones falls by up to a fifth.
FULL_CLOCK_TOKENS = 4096
# For many tokens most of cuBLAS's tiles are 128 tokens high; for few it has kernels of many heights.
TILE_TOKENS = 128
UNTILED_TOKENS = 512
# At some sizes (832, 448 tokens) cuBLAS's heuristics choose a kernel that takes half as long again as that of
# a larger product. Their neighbours get other kernels.
POOR_CHOICE = 1.05
# vLLM's FP8 products are CUTLASS's, of one kernel up to each of these numbers of tokens and one for more,
# whose rows of tiles are so high.
CUTLASS_TOKENS, CUTLASS_ROW = (16, 64, 128), 256
RESULT_BYTES = 2  # of an element of a linear layer's result; FP8's are bf16, too
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
                    return between._replace(duration_us=0.5 * (between.duration_us + same_row_us))
        return between


def _row(m: int) -> int:
    """The last of a product's rows of tiles."""
    return -(-m // TILE_TOKENS)


class TileCurve:
    """CUTLASS's durations over m: each kernel, and each row of tiles, has a curve of its own.

    Part of a row takes up to 1.5 times as long as all of it, so nothing follows from products that end in
    other rows, and no choice of a kernel is poor.
    """

    def __init__(self, measured: Curve) -> None:
        self._measured = measured

    def estimate(self, m: int) -> Estimate:
        """In between on a line within a row; what has one neighbour in its row takes as long as that one."""
        at = self._measured.at
        between = self._measured.estimate(m, "gemm")
        i = bisect.bisect_left(at, m)
        if not 0 < i < len(at) or at[i] == m:
            return between
        same_row = [j for j in (i - 1, i) if _cutlass_row(int(at[j])) == _cutlass_row(m)]
        if len(same_row) != 1:
            return between
        return between._replace(duration_us=self._measured.duration_us[same_row[0]])


def _cutlass_row(m: int) -> int:
    """The tokens up to which m's last row of tiles goes."""
    for top in CUTLASS_TOKENS:
        if m <= top:
            return top
    return -(-m // CUTLASS_ROW) * CUTLASS_ROW


def full_clock_tokens(dtype: str) -> int:
    """Up to how many tokens products of such operands were measured at full clock."""
    return sys.maxsize if dtype in FP8 else FULL_CLOCK_TOKENS


def curve_of(dtype: str, measured: Curve) -> TokenCurve | TileCurve:
    """Durations over m of products of such operands."""
    return TileCurve(measured) if dtype in FP8 else TokenCurve(measured)


class GemmModel:
    """Measured curves over m per weight shape; other shapes borrow the efficiency of similar ones.

    Efficiency is the roofline's time (bytes or FLOPs, at the datasheet's rates) over the measured time, but
    for what any product takes.  It varies slowly with n and k at a given m, so the measured shapes around
    (log n, log k) tell it: the corners of a rectangle where they form a grid, else the nearest ones.

    Args:
        launches: how many launches each product took; one where nothing is said.
    """

    def __init__(
        self, limits: GpuLimits, points: dict[Key, list[tuple[int, float]]], launches: Launches | None = None
    ) -> None:
        self._limits = limits
        self._launches = {key: sorted(found) for key, found in (launches or {}).items()}
        self._curves = {
            key: curve_of(key[2], Curve.from_points([(float(m), us) for m, us in found]))
            for key, found in points.items()
        }
        self._shapes = {
            dtype: [key for key in self._curves if key[2] == dtype] for dtype in {k[2] for k in self._curves}
        }

    def estimate(self, m: int, n: int, k: int, dtype: str, out_dtype: str) -> Estimate:
        """At the GPU's full clock."""
        dtype = dtype.removeprefix("torch.")
        tokens = min(m, full_clock_tokens(dtype)) if self._limits.power_modelled else m
        alone = self._estimate(tokens, n, k, dtype, out_dtype)
        provenance = alone.provenance if tokens == m else weaker(alone.provenance, "interpolated")
        flops = 2.0 * m * n * k
        nbytes = float(gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype)))
        launches = self._launches_of(m, n, k, dtype)
        return Estimate(
            alone.duration_us * m / tokens,
            provenance,
            alone.rel_std,
            "gemm",
            flops,
            nbytes,
            launches,
            dtype=dtype,
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
        if dtype in FP8 and self._shapes.get(MEASURED_EVERYWHERE):
            return self._as_efficient(m, n, k, dtype)
        flops = 2.0 * m * n * k
        nbytes = gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype))
        return roofline(self._limits, "gemm", flops, nbytes, dtype)

    def _as_efficient(self, m: int, n: int, k: int, dtype: str) -> Estimate:
        """As far from the roofline as the same product in bf16; CUTLASS calculates whole rows of tiles."""
        other = self._estimate(m, n, k, MEASURED_EVERYWHERE, MEASURED_EVERYWHERE)
        whole_us = ideal_us(self._limits, _cutlass_row(m), n, k, dtype)
        ratio = whole_us / ideal_us(self._limits, m, n, k, MEASURED_EVERYWHERE)
        rel_std = max(other.rel_std, OTHER_DTYPE_REL_STD)
        return Estimate(other.duration_us * ratio, weaker(other.provenance, "extrapolated"), rel_std, "gemm")

    def _from_similar(self, m: int, n: int, k: int, dtype: str) -> Estimate:
        between = self._rectangle(n, k, dtype)
        weighted = between or self._nearest(n, k, dtype)
        logs = [self._log_efficiency(m, shape) for shape, _ in weighted]
        weights = [weight for _, weight in weighted]
        efficiency = math.exp(float(np.average(logs, weights=weights)))
        duration_us = STARTUP_US + ideal_us(self._limits, m, n, k, dtype) / efficiency
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
        duration_us = self._curves[shape].estimate(m).duration_us
        working_us = duration_us - min(STARTUP_US, duration_us / 2)
        return math.log(ideal_us(self._limits, m, n, k, dtype) / working_us)


def ideal_us(limits: GpuLimits, m: int, n: int, k: int, dtype: str) -> float:
    """What a linear layer's product takes at the datasheet's rates, bytes after FLOPs."""
    nbytes = gemm_bytes(m, n, k, dtype_bytes(dtype), RESULT_BYTES)
    return nbytes / limits.memory_bytes_per_us + 2.0 * m * n * k / limits.flop_per_us(dtype)


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
