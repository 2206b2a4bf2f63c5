"""Timing sources: plug-ins that know how long a GPU's kernels take.

A package offers one under the entry-point group ``revati.timing_sources``; the entry point's name is what
``timing.source=`` accepts, its object a `SourcePlugin`.  Revati's own two need no entry point.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from revati.timing.estimate import AttentionUse, Estimate, RankShape
from revati.timing.sharing import Beginnings

GROUP = "revati.timing_sources"
# In order of preference where `timing.source` is left open.
_OWN = {"kernel_db": "revati.timing.kernel_db", "aiconfigurator": "revati.timing.aiconfigurator"}


class UnknownSourceError(ValueError):
    """No such timing source, or none for this GPU; the message names what there is."""


class TimingSource(Protocol):
    """Durations for one rank of a deployment on one GPU; every answer says how far to trust it.

    Lives in the engine's process: it imports nothing heavier than NumPy and pyarrow.  `attention` is asked
    once per engine step (at most 50 µs), everything else once per distinct launch.
    """

    @property
    def shape(self) -> RankShape: ...

    @property
    def graph_gap_us(self) -> float:
        """Idle time between two kernels of a CUDA graph."""

    @property
    def launch_gap_us(self) -> float:
        """Idle time between two launches that queue up on a stream."""

    def kernel(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        num_tokens: int,
        num_reqs: int,
    ) -> Estimate:
        """A kernel that is no GEMM, no attention and no collective; ``name`` is demangled."""

    def gemm(
        self, m: int, n: int, k: int, dtype: str, out_dtype: str, trans_a: bool, trans_b: bool, batch: int
    ) -> Estimate:
        """out[m, n] = a[m, k] @ w[n, k]^T, ``batch`` times; m is the number of tokens."""

    def collective(self, op: str, nbytes: int, ranks: int, impl: str) -> Estimate:
        """``nbytes`` is what one rank puts in; ``impl``: nccl, [sglang_]custom_1stage or …_2stage."""

    def copy(self, direction: str, nbytes: int) -> Estimate:
        """``direction``: h2d, d2h, d2d or memset."""

    def is_attention(self, name: str) -> str | None:
        """``'main'``, ``'combine'`` or None for a demangled kernel name."""

    def attention(
        self,
        query_lens: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        use: AttentionUse,
        beginnings: Beginnings | None,
    ) -> tuple[Estimate, Estimate]:
        """Main and combine kernel of one layer for a batch; ``context_lens`` include the query tokens.

        Args:
            beginnings: of the contexts, where any begin alike.
        """


class SourcePlugin(Protocol):
    """What an entry point names: a module or an object with these functions."""

    def gpus(self) -> list[str]:
        """Names (as in ``conf/gpu``) of the GPUs that it has data for on this machine."""

    def missing(self, gpu: str) -> str:
        """Why it has no data for a GPU, and how to get some; for the message of an error."""

    def prepare(self, gpu: str) -> None:
        """Called outside of engines before a run: whatever is slow or needs large libraries, once."""

    def open(self, gpu: str, shape: RankShape) -> TimingSource:
        """Called in the engine's process."""


def known_sources() -> list[str]:
    """Names that ``timing.source`` accepts."""
    return [*_OWN, *sorted(set(entry_points(group=GROUP).names) - set(_OWN))]


def source(name: str) -> SourcePlugin:
    """A source by name.

    Raises:
        UnknownSourceError: names the known ones.
    """
    if name in _OWN:
        plugin: SourcePlugin = importlib.import_module(_OWN[name])
        return plugin
    for entry in entry_points(group=GROUP, name=name):
        found: SourcePlugin = entry.load()
        return found
    raise UnknownSourceError(f"timing.source={name!r} is unknown; known: {', '.join(known_sources())}")


def choose(name: str | None, gpu: str) -> str:
    """The source to use for a GPU: the one asked for, else the first that has data.

    Raises:
        UnknownSourceError: it does not exist or has nothing for this GPU; says what is missing.
    """
    asked = [name] if name is not None else known_sources()
    for one in asked:
        if gpu in source(one).gpus():
            return one
    reasons = "; ".join(f"{one}: {source(one).missing(gpu)}" for one in asked)
    raise UnknownSourceError(f"no kernel timings for gpu={gpu}: {reasons}")
