"""Make sure that processes end with whoever started them, also those that their parents lost.

All that a process starts inherits a mark in its environment, by which it is found whoever its parent is by
then: engines have processes in sessions of their own, and some of Ray's outlive their raylet by a minute.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SESSION_VARIABLE = "REVATI_SESSION"
_GRACE_S = 2.0
_POLL_S = 0.05


def marks(mark: str, variable: str = SESSION_VARIABLE) -> dict[str, str]:
    """What to add to the environment of a process, to find it and its descendants."""
    return {variable: mark, "SPT_NOENV": "1"}  # or process titles overwrite the environment


@contextmanager
def no_leftovers(mark: str) -> Iterator[None]:
    """End every process that was started inside and is still there afterwards."""
    os.environ.update(marks(mark))
    try:
        yield
    finally:
        del os.environ[SESSION_VARIABLE]
        end_marked(mark)


def end_marked(mark: str, variable: str = SESSION_VARIABLE, grace_s: float = _GRACE_S) -> None:
    """Wait until all processes with this mark have ended, by force if they do not go by themselves."""
    entry = f"{variable}={mark}".encode()
    deadline = time.monotonic() + grace_s
    while marked := _marked(entry):
        if time.monotonic() > deadline:
            for pid in marked:
                _kill(pid)
        time.sleep(_POLL_S)


def _marked(entry: bytes) -> list[int]:
    """Living processes with the entry in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # A zombie has an empty environment.
            if entry in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
