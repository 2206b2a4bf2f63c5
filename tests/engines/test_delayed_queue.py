"""A channel with a latency, on a clock that the test moves."""

from __future__ import annotations

import queue

import pytest

from revati.engines.vllm.delayed_queue import DelayedQueue


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_messages_arrive_after_their_latency_in_the_order_of_sending() -> None:
    clock = Clock()
    channel = DelayedQueue(clock, lambda message: int(message))
    channel.put_nowait(100)
    channel.put_nowait(10)  # faster, but sent later
    assert channel.empty()
    with pytest.raises(queue.Empty):
        channel.get_nowait()
    clock.now_ns = 99
    assert channel.empty()
    clock.now_ns = 100
    assert [channel.get_nowait(), channel.get_nowait()] == [100, 10]
    assert channel.empty()


def test_a_message_without_latency_is_there_at_once() -> None:
    channel = DelayedQueue(Clock(), lambda message: 0)
    channel.put_nowait("now")
    assert not channel.empty()
    assert channel.get() == "now"
