"""Idle time of the GPU between consecutive kernels, inside a CUDA graph and between stream launches."""

from __future__ import annotations

from itertools import pairwise

import torch

from revati.profile.graph_times import PAIRS_PER_GRAPH, REPLAYS, Pairs, pair_times_us, traced
from revati.profile.parts import Row, summary, timed_gap
from revati.profile.recorder import record
from revati.profile.shapes import PAIR_TOKENS, UP_AND_DOWN


def measure() -> list[Row]:
    return [*_graph_gaps(), _stream_gap()]


def _graph_gaps() -> list[Row]:
    """What graphs of products take longer than their kernels do, for each of them.

    Only where each product is one kernel: what is between a split one's is part of it. Traced gaps don't
    tell: tracing makes them longer.
    """
    graphs = Pairs().graphs()
    (times_us,) = pair_times_us(graphs)
    rows: list[Row] = []
    for tokens, graph, took_us in zip(PAIR_TOKENS, graphs, times_us, strict=True):
        kernels = traced(graph)
        pairs = PAIRS_PER_GRAPH * REPLAYS
        if len(kernels) == len(UP_AND_DOWN) * pairs:
            busy_us = sum(event.duration_us for event in kernels) / pairs
            rows.append(timed_gap(tokens, [(one_us - busy_us) / len(UP_AND_DOWN) for one_us in took_us]))
    return rows


def _stream_gap() -> Row:
    """Launches that queue up behind a long kernel run back to back."""
    x = torch.randn(32, 4096, dtype=torch.bfloat16, device="cuda")
    x.mul_(1.0)  # a kernel's first launch waits for those before it

    def work() -> None:
        torch.cuda._sleep(20_000_000)
        for _ in range(200):
            x.mul_(1.0)

    events = [e for e in record(work) if e.category == "kernel"][1:]
    gaps = [b.start_us - a.end_us for a, b in pairwise(events)]
    return {"kind": "gap", "kernel": "stream", "method": "cupti", **summary(gaps)}
