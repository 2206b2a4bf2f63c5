"""Queues between two threads of an engine core that stand for channels to other processes.

A message is there some time after it was sent, and the thread at this end needs the interpreter's lock.
"""

from __future__ import annotations

import queue
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from revati.virtual_time.interpreter_lock import InterpreterLock, ReceivingThread


class DelayedQueue(queue.Queue):  # type: ignore[type-arg]
    """Hands out messages when they are there, in the order of their sending.

    Args:
        now_ns: the calling thread's clock.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        super().__init__()
        self._now_ns = now_ns

    def empty(self) -> bool:
        with self.mutex:
            return self._remaining_ns() != 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert timeout is None
        with self.not_empty:
            while (remaining_ns := self._remaining_ns()) != 0:
                if not block:
                    raise queue.Empty
                self.not_empty.wait(None if remaining_ns is None else remaining_ns / 1e9)
            return self._get()

    def released(self) -> None:
        """The interpreter's lock was released: look again."""
        with self.mutex:
            self.not_empty.notify()

    def _remaining_ns(self) -> int | None:
        """Time until the first message is there: 0 if it is, None if nobody knows."""
        there_ns = self._there_ns()
        return None if there_ns is None else max(0, there_ns - self._now_ns())

    @abstractmethod
    def _there_ns(self) -> int | None:
        """When the first message is there, if there is one."""


class IncomingQueue(DelayedQueue):
    """From another process to the main thread.

    Args:
        costs_ns: a message's ``way_ns`` and ``unpack_ns``, and whether it comes behind others; asked while
            the queue's lock is held.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        lock: InterpreterLock,
        costs_ns: Callable[[Any, bool], tuple[int, int]],
    ) -> None:
        super().__init__(now_ns)
        self._thread: ReceivingThread[Any] = ReceivingThread(lock)
        self._costs_ns = costs_ns

    def _qsize(self) -> int:
        return len(self._thread)

    def _put(self, item: Any) -> None:
        self._thread.send(item, self._now_ns(), *self._costs_ns(item, len(self._thread) > 0))

    def _get(self) -> Any:
        return self._thread.take()

    def _there_ns(self) -> int | None:
        return self._thread.next_ns()


class OutgoingQueue(DelayedQueue):
    """From the main thread to another process; a message leaves when the main thread lets its sender run.

    Args:
        latency_ns: a message's latency; asked while the queue's lock is held.
    """

    def __init__(
        self, now_ns: Callable[[], int], lock: InterpreterLock, latency_ns: Callable[[Any], int]
    ) -> None:
        super().__init__(now_ns)
        self._lock, self._latency_ns = lock, latency_ns
        self._last_ns = 0

    def _init(self, maxsize: int) -> None:
        self.queue: deque[tuple[Any, int, int]] = deque()

    def _put(self, item: Any) -> None:
        self.queue.append((item, self._now_ns(), self._latency_ns(item)))

    def _get(self) -> Any:
        there_ns = self._there_ns()
        assert there_ns is not None
        self._last_ns = there_ns
        return self.queue.popleft()[0]

    def _there_ns(self) -> int | None:
        if not self.queue:
            return None
        _, made_ns, latency_ns = self.queue[0]
        left_ns = self._lock.done_ns(made_ns, 0)
        return None if left_ns is None else max(self._last_ns, left_ns + latency_ns)
