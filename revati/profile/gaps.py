"""Idle time of the GPU between consecutive kernels, inside a CUDA graph and between stream launches."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from revati.profile.gemm import Weights
from revati.profile.parts import Row, summary
from revati.profile.recorder import GpuEvent, record
from revati.profile.shapes import UP_AND_DOWN
from revati.timing.schema import TIMED

LAYERS = 24
REPLAYS, ROUNDS = 20, 3
# Their products are one kernel each (what is between a split one's is part of it), short of the power limit.
TOKENS = (64, 128)


def measure() -> list[Row]:
    return [*(_graph_gap(tokens) for tokens in TOKENS), _stream_gap()]


def _chain(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights:
        x = F.linear(x, weight)
    return x


def _graph_gap(tokens: int) -> Row:
    """What a graph of products takes longer than its kernels do, for each of them.

    Traced gaps don't tell: tracing makes them longer, and moves where kernels seem to begin and end; short
    ones then overlap (-0.03 to -0.11 µs with elementwise kernels in between).
    """
    pool = Weights()
    weights = [pool.next(*shape) for _ in range(LAYERS) for shape in UP_AND_DOWN]
    x = torch.randn(tokens, UP_AND_DOWN[0][1], dtype=torch.bfloat16, device="cuda")
    _chain(x, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _chain(x, weights)
    took_us = [replay_us(graph) for _ in range(ROUNDS)]
    kernels = traced(graph)
    busy_us, count = sum(event.duration_us for event in kernels) / REPLAYS, len(kernels) / REPLAYS
    common = {"kind": "gap", "kernel": "graph", "variant": TIMED, "num_tokens": tokens, "method": "events"}
    return common | summary([(one_us - busy_us) / count for one_us in took_us])


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay in a row of them, whose launches are over before it begins."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000)
    graph.replay()
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / REPLAYS


def traced(graph: torch.cuda.CUDAGraph) -> list[GpuEvent]:
    """The kernels of `REPLAYS` replays, each on its own, after as many to warm up."""

    def work() -> None:
        for _ in range(REPLAYS):
            graph.replay()
            torch.cuda.synchronize()

    work()
    return [event for event in record(work) if event.category == "kernel"]


def _stream_gap() -> Row:
    """Launches that queue up behind a long kernel run back to back."""
    x = torch.randn(32, 4096, dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        torch.cuda._sleep(200_000_000)  # until all of them are launched, traced for the first time or not
        for _ in range(200):
            x.mul_(1.0)

    events = [e for e in record(work) if e.category == "kernel"][1:]
    gaps = [b.start_us - a.end_us for a, b in pairwise(events)]
    return {"kind": "gap", "kernel": "stream", "method": "cupti", **summary(gaps)}
