"""Virtual cores: processors of their own in virtual time, all run by one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from revati.interception.core import NativeCore


class VirtualCore:
    """The core of another process or thread of the deployment.

    Code run ``on`` it advances its clock and not the caller's.  It may run ahead of the caller as long as
    the caller doesn't look at its results before `now_ns`.
    """

    def __init__(self, native: NativeCore, name: str) -> None:
        self._native, self.name = native, name
        self.now_ns = 0

    @contextmanager
    def on(self, not_before_ns: int) -> Iterator[None]:
        """Run the block on this core, once it is free and not before the given time."""
        caller_ns = self._native.now_ns()
        self._native.set_ns(max(self.now_ns, not_before_ns))
        try:
            yield
        finally:
            self.now_ns = self._native.now_ns()
            self._native.set_ns(caller_ns)
