"""How each family's units are measured; imports CUDA libraries only when a unit runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Measure = Callable[[], list[Row]]


class Work:
    """Measurements by family, as calls without arguments."""

    def gaps(self) -> list[Row]:
        from revati.profile import gaps

        return gaps.measure()

    def copies(self) -> list[Row]:
        from revati.profile import transfers

        return transfers.measure()

    def gpus_name(self) -> str:
        from revati.profile import collective

        return f"gpus{collective.gpu_count()}"

    def collectives(self) -> list[Row]:
        from revati.profile import collective

        return collective.measure(collective.gpu_count())

    def gemms(self, layers: list[tuple[int, int]], heads: list[tuple[int, int]]) -> Measure:
        """Weight shapes (n, k) of layers at all token counts, of LM heads at those of decode steps."""

        def measure() -> list[Row]:
            from revati.profile.adaptive import measure_curves
            from revati.profile.gemm import measure as measure_points
            from revati.profile.shapes import COARSE_TOKENS, GEMM_TOKENS, LM_HEAD_TOKENS

            rows = []
            for shapes, tokens in ((layers, GEMM_TOKENS), (heads, LM_HEAD_TOKENS)):
                coarse = [m for m in COARSE_TOKENS if m <= tokens[-1]]
                rows += measure_curves(shapes, coarse, list(tokens), measure_points)
            return rows

        return measure

    def attention(self, num_q_heads: int, num_kv_heads: int) -> Measure:
        def measure() -> list[Row]:
            from revati.profile import attention

            return attention.measure(num_q_heads, num_kv_heads, attention.all_batches())

        return measure

    def kv_writes(self, num_q_heads: int, num_kv_heads: int) -> Measure:
        def measure() -> list[Row]:
            from revati.profile import kv_write

            return kv_write.measure(num_q_heads, num_kv_heads)

        return measure
