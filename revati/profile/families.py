"""How each family's units are measured; imports CUDA libraries only when a unit runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from revati.profile.attention_batches import Batch
from revati.profile.shapes import Shape
from revati.timing.attention_features import Heads

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

    def gemms(self, wanted: dict[Shape, list[int]], dtype: str, head: Shape) -> Measure:
        """Numbers of tokens by weight shape (n, k); engines launch the head's product outside of graphs."""

        def measure() -> list[Row]:
            from revati.profile import gemm

            return gemm.measure(wanted, dtype, outside_graphs=[head])

        return measure

    def attention(self, heads: Heads, batches: list[Batch], sharing: bool) -> Measure:
        """Of these batches, and where contexts begin alike."""

        def measure() -> list[Row]:
            from revati.profile import attention

            return attention.measure(heads, batches) + (attention.measure_sharing(heads) if sharing else [])

        return measure

    def kv_writes(self, heads: Heads) -> Measure:
        def measure() -> list[Row]:
            from revati.profile import kv_write

            return kv_write.measure(heads)

        return measure
