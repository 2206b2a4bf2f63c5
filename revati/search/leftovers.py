"""Make sure that a Ray session ends with the sweep that started it.

``ray.shutdown`` does not wait for all of its processes: agents outlive their raylet by up to a minute. All
of them inherit a mark in their environment, by which they are found whoever their parent is by then.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_VARIABLE = "REVATI_SESSION"
_GRACE_S = 2.0
_POLL_S = 0.05


@contextmanager
def no_leftovers(mark: str) -> Iterator[None]:
    """End every process that was started inside and is still there afterwards."""
    os.environ[_VARIABLE] = mark
    os.environ["SPT_NOENV"] = "1"  # or Ray's process titles overwrite the environment
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        end_marked(mark)


def end_marked(mark: str) -> None:
    """End all processes with this mark, by force if they do not go by themselves."""
    entry = f"{_VARIABLE}={mark}".encode()
    deadline = time.monotonic() + _GRACE_S
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
