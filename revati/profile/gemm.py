"""GEMMs as torch calls them: F.linear in bf16, weights cold, input just written."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
import torch.nn.functional as F

from revati.profile.parts import Row, summary
from revati.profile.recorder import between_calls, record, span_us, split_at_marks

POOL_ELEMENTS = 3 * 2**30  # 6 GiB of bf16: a weight comes round again long after it left the cache
INPUT_ELEMENTS = 16384 * 28672
# A prefill of this many tokens lasts long enough to meet the power limit, so larger ones are measured under
# it; smaller ones are measured with a rest before each call.
SUSTAINED_TOKENS = 4096
SUSTAINED_FLOP_PER_US = 700e6
WARMUPS = 2
REPEATS = 5
CALLS_PER_RECORDING = 4000


@cache
def _random(elements: int, scale: float) -> torch.Tensor:
    """Random bf16: a GEMM on zeros draws less power and runs faster."""
    out = torch.empty(elements, dtype=torch.bfloat16, device="cuda")
    for at in range(0, elements, 2**28):
        out[at : at + 2**28].normal_(0.0, scale)
    return out


class Weights:
    """Weight views of a large pool, one after another."""

    def __init__(self) -> None:
        self._pool = _random(POOL_ELEMENTS, 0.02)
        self._at = 0

    def next(self, n: int, k: int) -> torch.Tensor:
        if self._at + n * k > self._pool.numel():
            self._at = 0
        view = self._pool[self._at : self._at + n * k].view(n, k)
        self._at += n * k
        return view


def measure(shapes: Iterable[tuple[int, int]], tokens: Iterable[int]) -> list[Row]:
    """One row per (m, n, k): the span of the call's kernels, split-K reduction included."""
    plan = [(m, n, k) for n, k in shapes for m in tokens]
    rows: list[Row] = []
    step = CALLS_PER_RECORDING // (WARMUPS + REPEATS)
    for at in range(0, len(plan), step):
        rows += _measure(plan[at : at + step])
    return rows


def _measure(plan: list[tuple[int, int, int]]) -> list[Row]:
    weights = Weights()
    source = _random(INPUT_ELEMENTS, 1.0)
    target = torch.empty_like(source)

    def work() -> None:
        for m, n, k in plan:
            x = target[: m * k].view(m, k)
            written = source[: m * k].view(m, k)
            rest_us = 2.0 * m * n * k / SUSTAINED_FLOP_PER_US if m <= SUSTAINED_TOKENS else 0.0
            for _ in range(WARMUPS + REPEATS):
                x.copy_(written)
                F.linear(x, weights.next(n, k))
                between_calls(rest_us)

    groups = split_at_marks(record(work), len(plan) * (WARMUPS + REPEATS))
    rows = []
    for i, (m, n, k) in enumerate(plan):
        calls = groups[i * (WARMUPS + REPEATS) + WARMUPS : (i + 1) * (WARMUPS + REPEATS)]
        first = calls[-1][0]
        rows.append(
            {
                "kind": "gemm",
                "kernel": "+".join(event.name.split("<")[0].split("(")[0] for event in calls[-1]),
                "dtype": "bfloat16",
                "grid_x": first.grid[0],
                "grid_y": first.grid[1],
                "grid_z": first.grid[2],
                "block_x": first.block[0],
                "shared_bytes": first.shared_bytes,
                "m": m,
                "n": n,
                "k": k,
                "method": "cupti",
                **summary([span_us(call) for call in calls]),
            }
        )
    return rows
