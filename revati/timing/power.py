"""What a kernel draws while it runs, and how much its time follows the clock."""

from __future__ import annotations

from revati.interception.gpu import GpuDescription
from revati.timing.estimate import FP8, Estimate

# What moves data from one place to another, at the pace of memory and links.
MOVES = frozenset({"copy", "memset", "collective"})


def demand(gpu: GpuDescription, estimate: Estimate) -> tuple[float, float]:
    """(power in W at full clock, relative growth of the duration per relative growth of the clock period)."""
    model = gpu.power
    if model is None:
        return 0.0, 0.0
    if not estimate.flops or not estimate.duration_us:
        if estimate.kind in MOVES:
            return model.moves_w, 0.0
        sensitivity = model.quant_sensitivity if estimate.kind == "quant" else model.other_sensitivity
        return model.other(estimate.duration_us), sensitivity
    fp8 = estimate.dtype in FP8
    tflops = gpu.fp8_tflops if fp8 and gpu.fp8_tflops else gpu.bf16_tflops
    flops_share = min(1.0, estimate.flops / (estimate.duration_us * tflops * 1e6))
    bytes_share = min(1.0, estimate.nbytes / (estimate.duration_us * gpu.memory_bandwidth_gb_s * 1e3))
    if estimate.kind == "gemm":
        return model.gemm(flops_share, bytes_share, fp8)
    return model.attention(flops_share, bytes_share)
