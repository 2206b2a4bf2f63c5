"""Calls at other depths of Python's stack."""

import itertools
import sys
import types
from typing import Any

from revati.engines.vllm.step_log import page_faults
from revati.profile.host_load import DEPTHS_WORDS, at_depths
from revati.profile.stack_depth import StackDepth, deepened

CALLS = 300


def large() -> None:
    """A frame of more words than lie between two depths."""


large.__code__ = large.__code__.replace(co_stacksize=DEPTHS_WORDS.step + 50)


def calls() -> int:
    before = page_faults()
    for _ in itertools.repeat(None, CALLS):
        large()
    return page_faults() - before


def test_at_some_depths_every_call_begins_a_chunk_and_at_most_none_does() -> None:
    faults = [deepened(calls, words)() for words in DEPTHS_WORDS]
    assert max(faults) >= CALLS
    assert sorted(faults)[len(faults) // 2] < CALLS / 10


def test_a_workers_runner_is_as_it_was_when_it_is_over() -> None:
    class Runner:
        def execute_model(self, scheduled: int, *, more: int) -> Any:
            return scheduled + more, sys._getframe(1).f_code.co_stacksize

    worker: Any = types.new_class("Worker", (StackDepth,))()
    worker.model_runner = Runner()
    worker.deepen_stack(500)
    assert worker.model_runner.execute_model(1, more=2)[0] == 3
    assert worker.model_runner.execute_model(1, more=2)[1] >= 500
    worker.deepen_stack(0)
    assert vars(worker.model_runner) == {}


def test_every_depth_sees_the_same_prompts() -> None:
    visits = at_depths()
    assert {words for words, _ in visits} == set(DEPTHS_WORDS)
    assert all(requests == visits[0][1] for _, requests in visits)
