"""GEMM durations: out[m, n] = a[m, k] @ w[n, k]^T with cold weights, as in a decoder layer."""

from __future__ import annotations

import math

import numpy as np

from revati.timing.curve import Curve
from revati.timing.estimate import Estimate, dtype_bytes, weaker
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import gemm_bytes, roofline

NEIGHBOURS = 4
EFFICIENCY_REL_STD = 0.12
# Longer products met the power limit while they were measured; what that does to them is modelled where
# they run (`power`), so here their rate is that of the longest product at full clock.
FULL_CLOCK_TOKENS = 4096
Key = tuple[int, int, str]  # n, k, dtype


class GemmModel:
    """Measured curves over m per weight shape; other shapes borrow the efficiency of similar ones.

    Efficiency is the roofline's time (bytes or FLOPs, at the datasheet's rates) over the measured time.
    It varies slowly with n and k at a given m, so the nearest measured shapes in (log n, log k) tell it.
    """

    def __init__(self, limits: GpuLimits, points: dict[Key, list[tuple[int, float]]]) -> None:
        self._limits = limits
        self._curves = {
            key: Curve.from_points([(float(m), us) for m, us in found]) for key, found in points.items()
        }
        self._shapes = {
            dtype: [key for key in self._curves if key[2] == dtype] for dtype in {k[2] for k in self._curves}
        }

    def estimate(self, m: int, n: int, k: int, dtype: str, out_dtype: str) -> Estimate:
        """At the GPU's full clock."""
        dtype = dtype.removeprefix("torch.")
        tokens = min(m, FULL_CLOCK_TOKENS)
        alone = self._estimate(tokens, n, k, dtype, out_dtype)
        provenance = alone.provenance if tokens == m else weaker(alone.provenance, "interpolated")
        flops = 2.0 * m * n * k
        nbytes = float(gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype)))
        return Estimate(alone.duration_us * m / tokens, provenance, alone.rel_std, "gemm", flops, nbytes)

    def _estimate(self, m: int, n: int, k: int, dtype: str, out_dtype: str) -> Estimate:
        curve = self._curves.get((n, k, dtype))
        if curve is not None:
            return curve.estimate(m, "gemm")
        if self._shapes.get(dtype):
            return self._from_similar(m, n, k, dtype)
        flops = 2.0 * m * n * k
        return roofline(
            self._limits, "gemm", flops, gemm_bytes(m, n, k, dtype_bytes(dtype), dtype_bytes(out_dtype))
        )

    def _from_similar(self, m: int, n: int, k: int, dtype: str) -> Estimate:
        shapes = self._shapes[dtype]
        distance = np.array([math.hypot(math.log(n / s[0]), math.log(k / s[1])) for s in shapes])
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        weights = 1.0 / (distance[nearest] + 1e-3) ** 2
        logs = [self._log_efficiency(m, shapes[int(i)]) for i in nearest]
        log_efficiency = float(np.average(logs, weights=weights))
        duration_us = self._ideal_us(m, n, k, dtype) / math.exp(log_efficiency)
        rel_std = EFFICIENCY_REL_STD + float(np.std(logs))
        return Estimate(duration_us, "extrapolated", rel_std, "gemm")

    def _log_efficiency(self, m: int, shape: Key) -> float:
        n, k, dtype = shape
        return math.log(self._ideal_us(m, n, k, dtype) / self._curves[shape].estimate(m, "gemm").duration_us)

    def _ideal_us(self, m: int, n: int, k: int, dtype: str) -> float:
        size = dtype_bytes(dtype)
        bytes_us = gemm_bytes(m, n, k, size, size) / self._limits.memory_bytes_per_us
        return bytes_us + 2.0 * m * n * k / self._limits.bf16_flop_per_us
