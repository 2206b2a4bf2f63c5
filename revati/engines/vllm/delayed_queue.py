"""A queue between two threads that stands for a channel with a latency."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any


class DelayedQueue(queue.Queue):  # type: ignore[type-arg]
    """Hands out a message once it has been under way for its latency, in the order of their sending.

    Args:
        now_ns: the calling thread's clock.
        latency_ns: a message's latency; asked while the queue's lock is held.
    """

    def __init__(self, now_ns: Callable[[], int], latency_ns: Callable[[Any], int]) -> None:
        super().__init__()
        self._now_ns, self._latency_ns = now_ns, latency_ns
        self._last_ns = 0

    def empty(self) -> bool:
        with self.mutex:
            return self._remaining_ns() != 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert timeout is None
        with self.not_empty:
            while remaining_ns := self._remaining_ns():
                if not block:
                    raise queue.Empty
                self.not_empty.wait(None if remaining_ns < 0 else remaining_ns / 1e9)
            return self._get()[1]

    def _put(self, item: Any) -> None:
        self._last_ns = max(self._last_ns, self._now_ns() + self._latency_ns(item))
        super()._put((self._last_ns, item))

    def _remaining_ns(self) -> int:
        """Time until the first message is there: 0 if it is, negative if there is none."""
        return max(0, self.queue[0][0] - self._now_ns()) if self.queue else -1
