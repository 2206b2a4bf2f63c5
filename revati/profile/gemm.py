"""GEMMs as vLLM calls them, in bf16 or FP8: weights cold, input just written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.nn.functional as F

from revati.profile.parts import Row, summary
from revati.profile.recorder import between_calls, record, span_us, split_at_marks
from revati.timing.estimate import DTYPE_BYTES

POOL_BYTES = 6 * 2**30  # a weight comes round again long after it left the cache
INPUT_ELEMENTS = 16384 * 28672
# A prefill of this many tokens lasts long enough to meet the power limit, so larger ones are measured under
# it; smaller ones are measured with a rest before each call.
SUSTAINED_TOKENS = 4096
SUSTAINED_FLOP_PER_US = 700e6
WARMUPS = 2
REPEATS = 5
CALLS_PER_RECORDING = 4000

_CUTLASS = re.compile(r"cutlass_3x_gemm\w*")
MAX_FP8 = 448.0
# Standard deviation of inputs and weights; quantised ones fill FP8's range.
SPREAD = {"bfloat16": (1.0, 0.02), "float8_e4m3": (110.0, 90.0)}
_TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of input [m, k] and weight [n, k]


@cache
def _random(elements: int, spread: float, dtype: str) -> torch.Tensor:
    """Random numbers: a GEMM on zeros draws less power and runs faster."""
    out = torch.empty(elements, dtype=_TORCH_DTYPE[dtype], device="cuda")
    for at in range(0, elements, 2**28):
        part = out[at : at + 2**28]
        drawn = torch.empty_like(part, dtype=torch.bfloat16).normal_(0.0, spread)
        part.copy_(drawn if dtype == "bfloat16" else drawn.clamp_(-MAX_FP8, MAX_FP8))
    return out


class Weights:
    """Weight views of a large pool, one after another."""

    def __init__(self, dtype: str = "bfloat16") -> None:
        self._pool = _random(POOL_BYTES // DTYPE_BYTES[dtype], SPREAD[dtype][1], dtype)
        self._at = 0

    def next(self, n: int, k: int) -> torch.Tensor:
        if self._at + n * k > self._pool.numel():
            self._at = 0
        view = self._pool[self._at : self._at + n * k].view(n, k)
        self._at += n * k
        return view


def product(dtype: str) -> Product:
    """A linear layer's: torch's in bf16; in FP8 vLLM's, with a scale per token and one for the weights."""
    if dtype == "bfloat16":
        return F.linear
    from vllm import _custom_ops

    token_scales = torch.full((INPUT_ELEMENTS // 1024, 1), 0.01, dtype=torch.float32, device="cuda")
    weight_scale = torch.full((1,), 1e-4, dtype=torch.float32, device="cuda")

    def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _custom_ops.cutlass_scaled_mm(
            x, weight.t(), token_scales[: x.shape[0]], weight_scale, torch.bfloat16
        )
        return out

    return scaled


def measure(shapes: Iterable[tuple[int, int]], tokens: Iterable[int], dtype: str = "bfloat16") -> list[Row]:
    """One row per (m, n, k): the span of the call's kernels, split-K reduction included."""
    plan = [(m, n, k) for n, k in shapes for m in tokens]
    rows: list[Row] = []
    step = CALLS_PER_RECORDING // (WARMUPS + REPEATS)
    for at in range(0, len(plan), step):
        rows += _measure(plan[at : at + step], dtype)
    return rows


def _measure(plan: list[tuple[int, int, int]], dtype: str) -> list[Row]:
    weights, multiply = Weights(dtype), product(dtype)
    source = _random(INPUT_ELEMENTS, SPREAD[dtype][0], dtype)
    target = torch.empty_like(source)

    def work() -> None:
        for m, n, k in plan:
            x = target[: m * k].view(m, k)
            written = source[: m * k].view(m, k)
            rest_us = 2.0 * m * n * k / SUSTAINED_FLOP_PER_US if m <= SUSTAINED_TOKENS else 0.0
            for _ in range(WARMUPS + REPEATS):
                x.copy_(written)
                multiply(x, weights.next(n, k))
                between_calls(rest_us)

    groups = split_at_marks(record(work), len(plan) * (WARMUPS + REPEATS))
    rows = []
    for i, (m, n, k) in enumerate(plan):
        calls = groups[i * (WARMUPS + REPEATS) + WARMUPS : (i + 1) * (WARMUPS + REPEATS)]
        first = calls[-1][0]
        rows.append(
            {
                "kind": "gemm",
                "kernel": "+".join(_short(event.name) for event in calls[-1]),
                "dtype": dtype,
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


def _short(name: str) -> str:
    """A kernel's name without its arguments; of vLLM's CUTLASS kernels, which are one's arguments, theirs."""
    if cutlass := _CUTLASS.search(name):
        return cutlass[0]
    return name.split("<")[0].split("(")[0]
