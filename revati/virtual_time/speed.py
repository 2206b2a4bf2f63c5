"""How fast this machine runs interpreter code, so that CPU time measured here can be scaled to a target."""

from __future__ import annotations

import time

_ITERATIONS, _REPEATS = 50_000, 9


def probe_ns() -> float:
    """CPU ns per iteration of a loop of calls and dictionary accesses: the best of several repeats."""
    return min(_one_ns() for _ in range(_REPEATS))


def _one_ns() -> float:
    table: dict[int, int] = {}

    def put(key: int, value: int) -> None:
        table[key] = value

    begin = time.thread_time_ns()
    for i in range(_ITERATIONS):
        put(i & 1023, i)
    return (time.thread_time_ns() - begin) / _ITERATIONS
