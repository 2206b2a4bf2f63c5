"""GEMMs as vLLM calls them, in bf16 or FP8: weights cold, input just written, short ones in CUDA graphs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cache

import torch
import torch.nn.functional as F

from revati.profile.parts import Row, summary
from revati.profile.recorder import GpuEvent, after_marks, between_calls, record, span_us, split_at_marks
from revati.profile.shapes import Shape
from revati.timing.attention_features import GRAPH_MAX_TOKENS
from revati.timing.estimate import DTYPE_BYTES
from revati.timing.gemm import full_clock_tokens

POOL_BYTES = 6 * 2**30  # a weight comes round again long after it left the cache
INPUT_ELEMENTS = 16384 * 28672
SUSTAINED_FLOP_PER_US = 700e6
WARMUPS = 2
REPEATS = 5
CALLS_PER_RECORDING = 4000
REST_S = 0.003  # after each graph, or as long as it ran: back to back they would meet the power limit

_CUTLASS = re.compile(r"cutlass_3x_gemm\w*")
MAX_FP8 = 448.0
# Standard deviation of inputs and weights; quantised ones fill FP8's range.
SPREAD = {"bfloat16": (1.0, 0.02), "float8_e4m3": (110.0, 90.0)}
_TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn}
Point = tuple[int, int, int]  # m, n, k
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


def random_input(m: int, k: int, dtype: str) -> torch.Tensor:
    return _random(INPUT_ELEMENTS, SPREAD[dtype][0], dtype)[: m * k].view(m, k)


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


def measure(
    wanted: Mapping[Shape, Iterable[int]], dtype: str = "bfloat16", outside_graphs: Container[Shape] = ()
) -> list[Row]:
    """One row per (m, n, k): the span of the call's kernels, split-K reduction included.

    Up to `GRAPH_MAX_TOKENS` products are measured as they run in an engine, inside CUDA graphs and between
    each other. Launched from a stream they are 3 to 10 % shorter: there a product's second kernel starts
    before the first has ended, in graphs it starts 0.6 to 1 µs afterwards.

    Args:
        wanted: numbers of tokens by weight shape (n, k); with none, a shape's products are only in between.
        outside_graphs: those of them that engines launch from a stream whatever the number of tokens.
    """
    in_graphs = [shape for shape in wanted if shape not in outside_graphs]
    captured = {(m, *shape) for shape in in_graphs for m in wanted[shape] if m <= GRAPH_MAX_TOKENS}
    found = _in_graphs(in_graphs, sorted({m for m, _, _ in captured}), dtype) if captured else {}
    rows = [found[point] for point in sorted(captured)]
    plan = [(m, *shape) for shape, tokens in wanted.items() for m in tokens]
    # The longest last: they meet the power limit, and for a while what follows does so, too.
    launched = sorted(point for point in plan if point not in captured)
    step = CALLS_PER_RECORDING // (WARMUPS + REPEATS)
    for at in range(0, len(launched), step):
        rows += _launched(launched[at : at + step], dtype)
    return rows


def calls(dtype: str) -> Callable[[int, int, int], None]:
    """A call of (m, n, k) writes its input, which marks its begin, and multiplies it by the next weight."""
    weights, multiply = Weights(dtype), product(dtype)
    source = _random(INPUT_ELEMENTS, SPREAD[dtype][0], dtype)
    target = torch.empty_like(source)

    def call(m: int, n: int, k: int) -> None:
        x = target[: m * k].view(m, k)
        x.copy_(source[: m * k].view(m, k))
        multiply(x, weights.next(n, k))

    return call


def rest_us(m: int, n: int, k: int) -> float:
    """How long the GPU rests after a product, so that its clock stays up."""
    return 2.0 * m * n * k / SUSTAINED_FLOP_PER_US


def _in_graphs(shapes: list[Shape], tokens: list[int], dtype: str) -> dict[Point, Row]:
    """Of a graph for each number of tokens, of some layers with a product of each shape."""
    call = calls(dtype)

    def layers(m: int) -> None:
        for _ in range(WARMUPS + REPEATS):
            for n, k in shapes:
                call(m, n, k)

    record(lambda: layers(tokens[0]))  # of graphs captured before a process's first recording some go missing
    pool, graphs = torch.cuda.graph_pool_handle(), []
    for m in tokens:
        layers(m)  # what a library sets up at a product's first launch can't be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            layers(m)
        graphs.append(graph)

    def replays() -> None:
        for graph in graphs:
            began_s = time.monotonic()
            graph.replay()
            torch.cuda.synchronize()
            time.sleep(max(REST_S, time.monotonic() - began_s))

    replays()
    plan = [(m, *shape) for m in tokens for _ in range(WARMUPS + REPEATS) for shape in shapes]
    by_point: dict[Point, list[list[GpuEvent]]] = {}
    for point, kernels in zip(plan, after_marks(record(replays), len(plan)), strict=True):
        by_point.setdefault(point, []).append(kernels)
    return {point: _row(*point, dtype, "graph", own[WARMUPS:]) for point, own in by_point.items()}


def _launched(plan: list[Point], dtype: str) -> list[Row]:
    """Launched from a stream, one after another; those that aren't to be at full clock without rests."""
    call = calls(dtype)

    def work() -> None:
        for m, n, k in plan:
            rested_us = rest_us(m, n, k) if m <= full_clock_tokens(dtype) else 0.0
            for _ in range(WARMUPS + REPEATS):
                call(m, n, k)
                between_calls(rested_us)

    found = split_at_marks(record(work), len(plan) * (WARMUPS + REPEATS))
    each = [found[i : i + WARMUPS + REPEATS] for i in range(0, len(found), WARMUPS + REPEATS)]
    return [_row(*point, dtype, "eager", own[WARMUPS:]) for point, own in zip(plan, each, strict=True)]


def _row(m: int, n: int, k: int, dtype: str, variant: str, calls: list[list[GpuEvent]]) -> Row:
    first = calls[-1][0]
    return {
        "kind": "gemm",
        "kernel": "+".join(_short(event.name) for event in calls[-1]),
        "variant": variant,
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


def _short(name: str) -> str:
    """A kernel's name without its arguments; of vLLM's CUTLASS kernels, which are one's arguments, theirs."""
    if cutlass := _CUTLASS.search(name):
        return cutlass[0]
    return name.split("<")[0].split("(")[0]
