"""FlashAttention-3 durations from a batch's query and context lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from revati.timing.estimate import Estimate, RankShape, dtype_bytes
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import roofline


class AttentionModel:
    def __init__(self, limits: GpuLimits, shape: RankShape) -> None:
        self._limits = limits
        self._shape = shape

    def estimate(
        self, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64]
    ) -> tuple[Estimate, Estimate]:
        """Main kernel and combine kernel of one layer; ``context_lens`` include the query tokens."""
        shape = self._shape
        query = query_lens.astype(np.float64)
        context = context_lens.astype(np.float64)
        pairs = float((query * (context - (query - 1) / 2)).sum())
        flops = 4.0 * pairs * shape.num_q_heads * shape.head_dim
        kv_bytes = 2.0 * float(context.sum()) * shape.num_kv_heads * shape.head_dim
        qo_bytes = 2.0 * float(query.sum()) * shape.num_q_heads * shape.head_dim
        size = dtype_bytes(shape.dtype)
        main = roofline(self._limits, "attention", flops, (kv_bytes + qo_bytes) * size)
        combine = roofline(self._limits, "combine", 0.0, qo_bytes * 4)
        return main, combine
