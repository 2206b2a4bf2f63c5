"""Chunks of Python's frame stack, counted beside the page faults that they cost this interpreter."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable
from types import FrameType

import pytest

from revati.engines.frame_stack import CHUNK_WORDS, FRAME_WORDS, FrameStack, frame_words

CALLS = 100
LAYER_WORDS, LEAF_WORDS = 300, 100
PADS = range(CHUNK_WORDS - 700, CHUNK_WORDS, 50)


def function(name: str, locals_: int, body: str) -> Callable[..., object]:
    """A function with a frame of about so many words."""
    scope: dict[str, Callable[..., object]] = {}
    lines = [f"def {name}(call, *rest):", *(f" v{i} = None" for i in range(locals_)), f" {body}"]
    exec("\n".join(lines), scope)
    return scope[name]


leaf = function("leaf", LEAF_WORDS, "return call")
layer = function("layer", LAYER_WORDS, "return call(None)")


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def measured(words: int) -> tuple[int, int]:
    """Page faults of calls on a thread of its own, with so many words below, and what is counted."""
    found = []
    model = function("model", words, f"[rest[0](rest[1]) for _ in range({CALLS})]; return call()")

    def run() -> None:
        model(faults, layer, leaf)  # what is done once
        before = faults()
        found.append(int(str(model(faults, layer, leaf))) - before)
        below, frame = 0, sys._getframe()
        while isinstance(frame, FrameType):
            below, frame = below + frame_words(frame.f_code), frame.f_back
        stack = FrameStack(below, model.__code__)
        sys.setprofile(stack.observe)
        model(faults, layer, leaf)
        sys.setprofile(None)
        found.append(stack.begun)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0], found[1]


def test_chunks_that_calls_begin_are_the_page_faults_of_this_interpreter() -> None:
    by_words = {words: measured(words) for words in PADS}
    begun = {count for _, count in by_words.values()}
    assert 0 in begun, "all of it fits"
    assert CALLS in begun, "a chunk for each layer, or for what it calls"
    for words, (faulted, count) in by_words.items():
        assert faulted == pytest.approx(count, abs=CALLS / 10), words


def test_frames_of_the_emulation_and_of_generators_take_no_words() -> None:
    def generator() -> object:
        yield

    assert frame_words(generator.__code__) == 0
    assert frame_words(frame_words.__wrapped__.__code__) == 0
    assert frame_words(leaf.__code__) >= LEAF_WORDS + FRAME_WORDS
