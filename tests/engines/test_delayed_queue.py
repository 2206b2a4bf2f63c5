"""Channels between a core's threads and other processes, on a clock that the test moves."""

from __future__ import annotations

import queue

import pytest

from revati.engines.vllm.delayed_queue import IncomingQueue, OutgoingQueue
from revati.virtual_time.interpreter_lock import InterpreterLock


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_messages_come_one_after_another_in_the_order_of_sending() -> None:
    clock = Clock()
    channel = IncomingQueue(
        clock, InterpreterLock(), lambda message, behind: (int(message), 7 if behind else 0)
    )
    channel.put_nowait(100)
    channel.put_nowait(10)  # faster, but sent later
    assert channel.empty()
    with pytest.raises(queue.Empty):
        channel.get_nowait()
    clock.now_ns = 99
    assert channel.empty()
    clock.now_ns = 100
    assert channel.get_nowait() == 100
    assert channel.empty()
    clock.now_ns = 107
    assert channel.get_nowait() == 10
    assert channel.empty()


def test_a_message_without_costs_is_there_at_once() -> None:
    channel = IncomingQueue(Clock(), InterpreterLock(), lambda message, behind: (0, 0))
    channel.put_nowait("now")
    assert not channel.empty()
    assert channel.get() == "now"


def test_outputs_leave_when_the_main_thread_lets_their_sender_run() -> None:
    clock, lock = Clock(), InterpreterLock()
    channel = OutgoingQueue(clock, lock, lambda message: int(message))
    lock.take(0)
    clock.now_ns = 5
    channel.put_nowait(10)
    clock.now_ns = 500
    assert channel.empty()
    lock.release(500)
    channel.released()
    clock.now_ns = 509
    assert channel.empty()
    clock.now_ns = 510
    assert channel.get_nowait() == 10


def test_outputs_arrive_in_the_order_of_sending() -> None:
    clock = Clock()
    channel = OutgoingQueue(clock, InterpreterLock(), lambda message: int(message))
    channel.put_nowait(100)
    channel.put_nowait(10)
    clock.now_ns = 100
    assert [channel.get_nowait(), channel.get_nowait()] == [100, 10]
