"""What ends with a domain: its members, and the shared memory that they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from revati.interception.domain_library import DomainLibrary

_ROUNDS, _ROUND_S = 50, 0.02


def end_members(library: DomainLibrary) -> None:
    """Kill -9 every member until none is left; those it started meanwhile are members, too."""
    for _ in range(_ROUNDS):
        members = [pid for pid in library.members() if pid != os.getpid() and _alive(pid)]
        if not members:
            break
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_ROUND_S)
    library.remove_files()


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"
