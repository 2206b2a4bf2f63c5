"""Products beside a broadcast that waits for its source, as stages of a pipeline wait for sampled tokens.

The waiting kernel holds one SM. A product whose tiles fill all of them takes a wave more: up to 1.9 times as
long where it was one wave, 1.02 to 1.4 times in prefills of 4096 tokens or more; where SMs are to spare, it
takes no longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from revati.profile.options import MODELS, PRECISIONS, TENSOR_PARALLEL
from revati.profile.shapes import layer_gemms, rank_shape

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from revati.profile.gemm import Point
    from revati.profile.parts import Row

TOKENS = (
    *range(32, 513, 32),
    *range(576, 1025, 64),
    *range(1152, 2049, 128),
    *range(2304, 4097, 256),
    *range(4608, 8193, 512),
)
WIDTHS_PER_RECORDING = 4
WARMUPS, REPEATS = 1, 4
SOURCE = 1  # the rank that the other one's broadcast waits for


def measure(rank: int, gloo: ProcessGroup, nccl: ProcessGroup) -> list[Row]:
    """Rows of kind crowded, from rank 0 of a group of two: each product alone and beside a broadcast."""
    import torch
    import torch.distributed as dist

    tokens = torch.zeros(256, dtype=torch.int64, device="cuda")
    side = torch.cuda.Stream()

    def broadcast() -> None:
        with torch.cuda.stream(side):
            dist.broadcast(tokens, SOURCE, group=nccl)

    def beside(products: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            broadcast()
            products()
            torch.cuda.current_stream().synchronize()
            dist.barrier(group=gloo)  # only now its source joins in

        return work

    broadcast()
    torch.cuda.synchronize()
    dist.barrier(group=gloo)
    rows: list[Row] = []
    shapes = _shapes()
    for dtype in PRECISIONS.values():
        for at in range(0, len(shapes), WIDTHS_PER_RECORDING):
            if rank == SOURCE:
                dist.barrier(group=gloo)
                broadcast()
                torch.cuda.synchronize()
            else:
                plan = [(m, *shape) for shape in shapes[at : at + WIDTHS_PER_RECORDING] for m in TOKENS]
                rows += _rows(plan, dtype, beside)
    return rows


def _shapes() -> list[tuple[int, int]]:
    """(n, k) of each n there is; how many tiles a product has does not depend on k."""
    least: dict[int, int] = {}
    for model in MODELS:
        for tp in TENSOR_PARALLEL:
            for n, k in layer_gemms(rank_shape(model, tp)):
                least[n] = min(k, least.get(n, k))
    return sorted(least.items())


def _rows(
    plan: list[Point], dtype: str, beside: Callable[[Callable[[], None]], Callable[[], None]]
) -> list[Row]:
    from revati.profile import gemm
    from revati.profile.parts import summary
    from revati.profile.recorder import between_calls, record, span_us, split_at_marks

    call, each = gemm.calls(dtype), WARMUPS + REPEATS

    def products() -> None:
        for m, n, k in plan:
            for _ in range(each):
                call(m, n, k)
                between_calls(gemm.rest_us(m, n, k))

    rows: list[Row] = []
    # Alone first: what a first launch allocates would wait for the broadcast, too.
    for variant, work in (("alone", products), ("broadcast", beside(products))):
        events = [event for event in record(work) if "nccl" not in event.name]
        found = split_at_marks(events, len(plan) * each)
        rows += [
            {
                "kind": "crowded",
                "kernel": "gemm",
                "variant": variant,
                "dtype": dtype,
                "m": m,
                "n": n,
                "k": k,
                "method": "cupti",
                **summary([span_us(one) for one in found[i * each + WARMUPS : (i + 1) * each]]),
            }
            for i, (m, n, k) in enumerate(plan)
        ]
    return rows
