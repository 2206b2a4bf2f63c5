"""The last resort: no kernel runs faster than its bytes and FLOPs allow.

Real kernels reach a part of the datasheet's rates and have a floor; both factors below are ordinary
engineering guesses, and every answer made with them says ``roofline``.
"""

from __future__ import annotations

from revati.timing.estimate import Estimate
from revati.timing.gpu import GpuLimits

ATTAINABLE = 0.75  # of peak bandwidth or peak FLOP rate, for a well-written large kernel
FLOOR_US = 2.0  # start, one wave and drain of the smallest useful kernel
REL_STD = 0.5
COLLECTIVE_FLOOR_US = 10.0


def roofline_us(limits: GpuLimits, flops: float, nbytes: float, dtype: str = "bfloat16") -> float:
    busy = max(flops / limits.flop_per_us(dtype), nbytes / limits.memory_bytes_per_us)
    return FLOOR_US + busy / ATTAINABLE


def roofline(limits: GpuLimits, kind: str, flops: float, nbytes: float, dtype: str = "bfloat16") -> Estimate:
    return Estimate(roofline_us(limits, flops, nbytes, dtype), "roofline", REL_STD, kind)


def gemm_bytes(m: int, n: int, k: int, in_bytes: int, out_bytes: int) -> int:
    return (m * k + n * k) * in_bytes + m * n * out_bytes


def collective_roofline(limits: GpuLimits, op: str, nbytes: int, ranks: int) -> Estimate:
    """Ring traffic over one GPU's links; ``nbytes`` is one rank's buffer."""
    if ranks <= 1:
        return Estimate(FLOOR_US, "roofline", REL_STD, "collective")
    share = (ranks - 1) / ranks
    traffic = nbytes * share * (2.0 if "reduce" in op and "scatter" not in op else 1.0)
    duration_us = COLLECTIVE_FLOOR_US + traffic / (limits.nvlink_bytes_per_us * ATTAINABLE)
    return Estimate(duration_us, "roofline", REL_STD, "collective")
