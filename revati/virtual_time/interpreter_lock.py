"""When the threads of a Python process run: one at a time, as the interpreter's lock wants it.

An engine core's main thread computes without a break from the end of one wait to the next; only then do the
threads that receive its requests and send its outputs go on.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

_REMEMBERED = 64  # a message waits for a few releases at most


class _Shared:
    """A time in which the main thread shared the lock; ``slack_ns``: it would have waited so much longer."""

    def __init__(self, from_ns: int) -> None:
        self.from_ns, self.to_ns, self.slack_ns = from_ns, -1, 0

    def end(self, now_ns: int) -> None:
        if self.to_ns < 0:
            self.to_ns = now_ns


class InterpreterLock:
    """When a process's main thread keeps the lock, shares it or waits without it, on its clock in ns.

    The interpreter takes the lock away after 5 ms if others want it; computing seldom takes that long.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._kept: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)  # (from, to)
        self._shared: deque[_Shared] = deque(maxlen=_REMEMBERED)
        self._taken_ns: int | None = None
        self._sharing: _Shared | None = None
        self._owed_ns = 0

    def take(self, now_ns: int) -> None:
        """The main thread computes from now on, if it did not before."""
        with self._mutex:
            if self._taken_ns is None:
                self._taken_ns = now_ns
                if self._sharing is not None:
                    self._sharing.end(now_ns)
                    self._sharing.slack_ns = now_ns - self._sharing.to_ns
                    self._shared.append(self._sharing)
                    self._sharing = None

    def share(self, now_ns: int) -> None:
        """It calls the GPU's driver all the time from now on, and others run instead of it."""
        with self._mutex:
            self._let_go(now_ns)
            self._sharing = _Shared(now_ns)

    def release(self, now_ns: int) -> None:
        """It waits from now on."""
        with self._mutex:
            self._let_go(now_ns)
            if self._sharing is not None:
                self._sharing.end(now_ns)

    def _let_go(self, now_ns: int) -> None:
        if self._taken_ns is not None and self._taken_ns < now_ns:
            self._kept.append((self._taken_ns, now_ns))
        self._taken_ns = None

    def worked(self, done_ns: int, work_ns: int) -> None:
        """Another thread computed until ``done_ns``."""
        with self._mutex:
            for shared in self._shared:
                delay_ns = min(done_ns, shared.to_ns) - max(done_ns - work_ns, shared.from_ns)
                if delay_ns > 0:
                    self._owed_ns += max(0, delay_ns - shared.slack_ns)
                    shared.slack_ns = max(0, shared.slack_ns - delay_ns)

    def settle(self) -> int:
        """The time in ns by which others have delayed the main thread since the last call."""
        with self._mutex:
            owed_ns, self._owed_ns = self._owed_ns, 0
        return owed_ns

    def done_ns(self, begin_ns: int, work_ns: int) -> int | None:
        """When another thread's work is done that could begin at ``begin_ns``; None: not before a release."""
        at_ns, left_ns = begin_ns, work_ns
        with self._mutex:
            for taken_ns, released_ns in self._kept:
                if at_ns + left_ns <= taken_ns:
                    break
                if at_ns < released_ns:
                    left_ns -= max(0, taken_ns - at_ns)
                    at_ns = released_ns
            if self._taken_ns is not None and at_ns + left_ns > self._taken_ns:
                return None
        return at_ns + left_ns


class ReceivingThread(Generic[T]):
    """Receives messages for the main thread, one after another, in the order of their sending."""

    def __init__(self, lock: InterpreterLock) -> None:
        self._lock = lock
        self._messages: deque[tuple[T, int, int, int]] = deque()
        self._free_ns = 0  # done with the message before

    def __len__(self) -> int:
        return len(self._messages)

    def send(self, message: T, sent_ns: int, way_ns: int, unpack_ns: int) -> None:
        """A message is under way.

        Args:
            way_ns: until it is there, if the thread waits for it.
            unpack_ns: until it is there, if the thread has just received another one.
        """
        self._messages.append((message, sent_ns, way_ns, unpack_ns))

    def next_ns(self) -> int | None:
        """When the next message is there; None: there is none, or the main thread keeps the lock."""
        if not self._messages:
            return None
        _, sent_ns, way_ns, unpack_ns = self._messages[0]
        alone_ns = self._lock.done_ns(sent_ns, way_ns)
        behind_ns = self._lock.done_ns(self._free_ns, unpack_ns)
        return None if alone_ns is None or behind_ns is None else max(alone_ns, behind_ns)

    def take(self) -> T:
        """The next message, which is there."""
        there_ns = self.next_ns()
        assert there_ns is not None
        self._free_ns = there_ns
        message, _, _, unpack_ns = self._messages.popleft()
        self._lock.worked(there_ns, unpack_ns)
        return message
