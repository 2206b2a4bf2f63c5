"""All-reduces between the products of decode steps, where ranks meet.

In a row of equal collectives (`collective`) ranks stay in step. Between products each rank arrives at its
own time, and what is launched and cached changes from kernel to kernel. Graphs of products with and without
all-reduces, timed as a whole, tell what one takes there; a trace of all ranks, how long they wait.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from revati.profile.shapes import PAIR_TOKENS, UP_AND_DOWN

if TYPE_CHECKING:
    import torch

    from revati.profile.parts import Row

ALL_REDUCE = "cross_device_reduce"


@dataclass(frozen=True, slots=True)
class Observed:
    """What one rank saw of a number of tokens."""

    tokens: int
    nbytes: int  # that it put in
    with_us: float  # of two products and the all-reduce after them
    without_us: float  # of the products alone
    busy_us: float  # of those, their kernels
    kernels: int  # of the products, split-K reductions included
    kernel: str  # the all-reduce's
    durations_us: list[float]  # of the all-reduce, in order; from this rank's arrival on


def measure(
    call: Callable[[torch.Tensor], object],
    capture: Callable[[], AbstractContextManager[None]],
    everyone: Callable[[list[Observed]], list[list[Observed]]],
) -> list[Row]:
    """Rows `meeting` and `wait` of an all-reduce, and gaps between products.

    Args:
        call: reduces a tensor.
        capture: encloses the capture of graphs with it.
        everyone: gathers what all ranks saw.
    """
    return rows_of(everyone(_observe(call, capture)))


def rows_of(ranks: Sequence[Sequence[Observed]]) -> list[Row]:
    """From what each rank saw, sizes in the same order.

    A gap is what a graph takes longer than its kernels do, where each product is one. `meeting` is what it
    takes longer by an all-reduce, without a gap and the wait for the last rank; `wait` how long ranks wait
    for it in the mean. The last one's kernel is the shortest.
    """
    from revati.profile.parts import summary, timed_gap

    by_size = list(zip(*ranks, strict=True))
    gaps_us = {
        seen[0].tokens: [(one.without_us - one.busy_us) / len(UP_AND_DOWN) for one in seen]
        for seen in by_size
        if all(one.kernels == len(UP_AND_DOWN) for one in seen)
    }
    rows = [timed_gap(tokens, found) | {"ranks": len(ranks)} for tokens, found in gaps_us.items()]
    gap_us = statistics.fmean(us for found in gaps_us.values() for us in found) if gaps_us else 0.0
    n, k = UP_AND_DOWN[0]
    for seen in by_size:
        calls = zip(*(one.durations_us for one in seen), strict=True)
        waits_us = [statistics.fmean(call) - min(call) for call in calls]
        longer_us = statistics.fmean(one.with_us - one.without_us for one in seen)
        common = {
            "kind": "collective",
            "variant": algorithm(seen[0].kernel),
            "dtype": "bfloat16",
            "m": seen[0].tokens,
            "n": n,
            "k": k,
            "nbytes": seen[0].nbytes,
            "ranks": len(ranks),
        }
        meeting_us = longer_us - gap_us - statistics.median(waits_us)
        meeting = {"kernel": "meeting", "method": "events", **summary([meeting_us])}
        rows += [common | meeting, common | {"kernel": "wait", "method": "cupti", **summary(waits_us)}]
    return rows


def algorithm(kernel: str) -> str:
    """vLLM's own by its kernel's name, or NCCL."""
    for stage in ("1stage", "2stage"):
        if f"{ALL_REDUCE}_{stage}" in kernel:
            return f"custom_{stage}"
    return "nccl"


def _observe(
    call: Callable[[torch.Tensor], object], capture: Callable[[], AbstractContextManager[None]]
) -> list[Observed]:
    from revati.profile.graph_times import PAIRS_PER_GRAPH, REPLAYS, Pairs, pair_times_us, traced
    from revati.profile.recorder import RecordingError

    pairs = Pairs()
    with capture():
        reducing = pairs.graphs(then=call)
    plain = pairs.graphs()
    with_us, without_us = pair_times_us(reducing, plain)

    seen = []
    for i, (tokens, x) in enumerate(zip(PAIR_TOKENS, pairs.inputs, strict=True)):
        # The first of a replay waits for the rank that launched last.
        reductions = [event for event in traced(reducing[i]) if ALL_REDUCE in event.name]
        kernels = traced(plain[i])
        if len(reductions) != PAIRS_PER_GRAPH * REPLAYS or len(kernels) % len(reductions):
            raise RecordingError(
                f"{tokens} tokens: {len(reductions)} all-reduces, {len(kernels)} kernels of products"
            )
        seen.append(
            Observed(
                tokens,
                x.nbytes,
                statistics.median(with_us[i]),
                statistics.median(without_us[i]),
                sum(event.duration_us for event in kernels) / len(reductions),
                len(kernels) // len(reductions),
                reductions[0].name,
                [event.duration_us for j, event in enumerate(reductions) if j % PAIRS_PER_GRAPH],
            )
        )
    return seen
