"""Idle time of the GPU between consecutive kernels, inside a CUDA graph and between stream launches."""

from __future__ import annotations

import statistics
from itertools import pairwise

import torch
import torch.nn.functional as F

from revati.profile.gemm import Weights
from revati.profile.parts import Row, summary
from revati.profile.recorder import record

LAYERS = 24
SMALL_KERNELS = 3  # per GEMM, about as in a decoder layer
REPLAYS = 20
HIDDEN = 4096


def measure() -> list[Row]:
    return [*(_graph_gap(tokens) for tokens in (1, 32, 256)), _stream_gap()]


def _chain(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights:
        x = F.linear(x, weight)
        for _ in range(SMALL_KERNELS):
            x = x * 0.5
    return x


def _graph_gap(tokens: int) -> Row:
    """Event-timed replays less the sum of CUPTI's kernel durations, per kernel boundary."""
    pool = Weights()
    weights = [pool.next(HIDDEN, HIDDEN) for _ in range(LAYERS)]
    x = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
    _chain(x, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _chain(x, weights)
    graph.replay()
    torch.cuda.synchronize()
    totals_us = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200_000)  # the launch is over before the graph starts
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        totals_us.append(start.elapsed_time(end) * 1e3)

    def work() -> None:
        for _ in range(REPLAYS):
            graph.replay()
            torch.cuda.synchronize()

    events = [e for e in record(work) if e.category == "kernel"]
    per_replay = len(events) // REPLAYS
    busy_us = sum(e.duration_us for e in events) / REPLAYS
    traced = [b.start_us - a.end_us for a, b in pairwise(events)]
    inside = [gap for i, gap in enumerate(traced) if (i + 1) % per_replay]
    print(
        f"graph of {per_replay} kernels, {tokens} tokens: events {statistics.median(totals_us):.1f} us, "
        f"kernels {busy_us:.1f} us, traced gap median {statistics.median(inside):.3f} "
        f"mean {statistics.fmean(inside):.3f} us",
        flush=True,
    )
    return {
        "kind": "gap",
        "kernel": "graph",
        "num_tokens": tokens,
        "method": "cupti",
        **summary(inside),
    } | {"median_us": statistics.fmean(inside)}


def _stream_gap() -> Row:
    """Launches that queue up behind a long kernel run back to back."""
    x = torch.randn(32, HIDDEN, dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        torch.cuda._sleep(20_000_000)
        for _ in range(200):
            x.mul_(1.0)

    events = [e for e in record(work) if e.category == "kernel"][1:]
    gaps = [b.start_us - a.end_us for a, b in pairwise(events)]
    return {"kind": "gap", "kernel": "stream", "method": "cupti", **summary(gaps)}
