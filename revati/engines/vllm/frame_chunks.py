"""How many chunks of Python's frame stack a forward pass of vLLM begins.

CPython 3.11 to 3.13 keep a thread's frames in chunks of 16 KiB, map the next chunk for a frame that does not
fit, and unmap it with that frame.  Below a model's layers lie the frames of the engine's process and those
that `torch.compile` makes of the model, which grow with the layers.  Where they end shortly before a chunk
does, calls in every layer begin a chunk each: launches of a small prefill take up to 1.6 times as long.

A kind of step is watched twice, by `sys.setprofile`: the first one may do what is only done once.  Frames are
as large here as there but for a few words of 2048, whichever of these versions runs; what lies below the
runner's `execute_model` is another process there, so the host's table says how much that is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from revati.virtual_time.host import HostMeter, StepKind, StepShape

CHUNK_WORDS, HEADER_WORDS, FRAME_WORDS = 2048, 3, 9  # pystate.c, _PyStackChunk, _PyInterpreterFrame
LOOKS = 2
_KINDS = ("piecewise", "compiled", "eager")  # which run the model's Python code
# Their frames are parts of the objects.
_APART = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ARGUMENTS = inspect.CO_VARARGS, inspect.CO_VARKEYWORDS
_OURS = str(Path(__file__).parents[2])


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
        sys.setprofile(stack.observe)
        try:
            yield
        finally:
            sys.setprofile(None)
        self._looks[step.kind], self._begun[step.kind] = looks + 1, stack.begun


class FrameStack:
    """Follows a thread's calls below a function, and counts the chunks that they begin.

    Args:
        below_words: on the stack when that function is called.
        root: its code.
    """

    def __init__(self, below_words: int, root: CodeType) -> None:
        # The first chunk's first word stays free, so that it is never unmapped.
        self._tops = [HEADER_WORDS + 1 + below_words]
        self._root = root
        self._frames: list[tuple[int, bool]] = []  # words, and whether it began a chunk
        self.begun = 0

    def observe(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "call" and (self._frames or frame.f_code is self._root):
            self._push(frame_words(frame.f_code))
        elif event == "return" and self._frames:
            words, begins = self._frames.pop()
            if begins:
                self._tops.pop()
            else:
                self._tops[-1] -= words

    def _push(self, words: int) -> None:
        begins = self._tops[-1] + words > CHUNK_WORDS
        if begins:
            self._tops.append(HEADER_WORDS)
            self.begun += 1
        self._tops[-1] += words
        self._frames.append((words, begins))


@cache
def frame_words(code: CodeType) -> int:
    """Words that a frame takes on its thread's stack; 0 for what production does not call there."""
    if code.co_flags & _APART or code.co_filename.startswith(_OURS):
        return 0
    given = code.co_argcount + code.co_kwonlyargcount + sum(bool(code.co_flags & flag) for flag in _ARGUMENTS)
    cells = set(code.co_cellvars) - set(code.co_varnames[:given])
    return code.co_nlocals + len(cells) + len(code.co_freevars) + code.co_stacksize + FRAME_WORDS


@cache
def _root() -> CodeType:
    code: CodeType = inspect.unwrap(GPUModelRunner.execute_model).__code__
    return code
