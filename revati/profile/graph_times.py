"""CUDA graphs of products as decode steps have them, timed as a whole and kernel by kernel.

In a process that has one or two graphs, kernels follow each other 0.2 µs faster than in one of many, as an
engine is. So all are captured before any is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from revati.profile.recorder import GpuEvent, record
from revati.profile.shapes import PAIR_TOKENS, UP_AND_DOWN

WEIGHTS = 6  # taken in turn, so that they come from memory
PAIRS_PER_GRAPH = 32
REPLAYS, ROUNDS = 20, 3


class Pairs:
    """Graphs of pairs of products, one for each of `PAIR_TOKENS`."""

    def __init__(self) -> None:
        self._up, self._down = (
            [0.02 * torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(WEIGHTS)]
            for shape in UP_AND_DOWN
        )
        width = UP_AND_DOWN[0][1]
        self.inputs = [torch.randn(m, width, dtype=torch.bfloat16, device="cuda") for m in PAIR_TOKENS]
        self._pair(self.inputs[0], 0)

    def graphs(self, then: Callable[[torch.Tensor], object] | None = None) -> list[torch.cuda.CUDAGraph]:
        """Capture them; ``then`` follows each pair."""
        return [self._graph(x, then) for x in self.inputs]

    def _graph(self, x: torch.Tensor, then: Callable[[torch.Tensor], object] | None) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for i in range(PAIRS_PER_GRAPH):
                result = self._pair(x, i)
                if then:
                    then(result)
        return graph

    def _pair(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.linear(F.linear(x, self._up[i % WEIGHTS]), self._down[i % WEIGHTS])


def pair_times_us(*kinds: Sequence[torch.cuda.CUDAGraph]) -> list[list[list[float]]]:
    """What a pair took in each round, for each graph of each kind; the kinds take turns."""
    times_us: list[list[list[float]]] = [[[] for _ in graphs] for graphs in kinds]
    for _ in range(ROUNDS):
        for graphs, found in zip(kinds, times_us, strict=True):
            for graph, own in zip(graphs, found, strict=True):
                own.append(_replay_us(graph) / PAIRS_PER_GRAPH)
    return times_us


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
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
