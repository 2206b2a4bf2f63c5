"""How many chunks of Python's frame stack a forward pass of vLLM begins (see `revati.engines.frame_stack`).

Below a model's layers lie the frames of the engine's process and those that `torch.compile` makes of the
model, which grow with the layers.  Where they end shortly before a chunk does, calls in every layer begin a
chunk each: launches of a small prefill take up to 1.6 times as long.

A kind of step is watched twice, by `sys.setprofile`: the first one may do what is only done once.  What lies
below the runner's `execute_model` is another process on the target: the host's table says how much that is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import CodeType

from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from revati.engines.frame_stack import FrameStack
from revati.virtual_time.host import HostMeter, StepKind, StepShape

LOOKS = 2
_KINDS = ("piecewise", "compiled", "eager")  # which run the model's Python code


class FrameChunks:
    """Of one worker's steps, by kind.

    Args:
        meter: of the worker's process; where its host's table has no cost of a chunk, nothing is counted.
        own_process: the worker is no part of the engine core's process.
    """

    def __init__(self, meter: HostMeter, own_process: bool) -> None:
        self._meter, self._own_process = meter, own_process
        self._looks: dict[StepKind, int] = {}
        self._begun: dict[StepKind, int] = {}

    def known(self, step: StepShape) -> StepShape:
        """A step with the chunks that the last one of its kind began."""
        begun = self._begun.get(step.kind, 0)
        return replace(step, frame_chunks=begun) if begun else step

    @contextmanager
    def watched(self, step: StepShape) -> Iterator[None]:
        """Count what a step of this kind begins, if that is not known yet."""
        costs, looks = self._meter.costs.frame_chunks, self._looks.get(step.kind, 0)
        if costs is None or step.kind not in _KINDS or looks == LOOKS:
            yield
            return
        stack = FrameStack(costs.worker_words if self._own_process else costs.engine_core_words, _root())
        before = sys.getprofile()
        sys.setprofile(stack.observe)
        try:
            yield
        finally:
            sys.setprofile(before)
        self._looks[step.kind], self._begun[step.kind] = looks + 1, stack.begun


@cache
def _root() -> CodeType:
    code: CodeType = inspect.unwrap(GPUModelRunner.execute_model).__code__
    return code
