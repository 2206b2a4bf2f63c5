"""The process that looks after a domain: ``python -m revati.virtual_time.domain_monitor``.

It cleans up after killed members, ends a stuck domain, and ends the members when its launcher has gone,
however that ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from revati.interception.domain_library import DomainLibrary
from revati.virtual_time.teardown import end_members

_WATCH_NS = 50_000_000
_STUCK_CHECK_S = 0.25


def monitor(path: Path, launcher: int, stuck_s: float, tolerate_deaths: bool) -> None:
    """Look after the domain until it has ended; then see to it that nothing of it is left."""
    library = DomainLibrary()
    library.attach(path)
    stuck_since: float | None = None
    next_stuck_check = 0.0
    while library.ended() is None:
        died = library.watch(_WATCH_NS)
        if died and not tolerate_deaths:
            library.end(died)
        if os.getppid() != launcher:
            library.end("the launcher has gone")
        now = time.monotonic()
        if stuck_s > 0 and now >= next_stuck_check:
            next_stuck_check = now + _STUCK_CHECK_S
            if not library.stuck():
                stuck_since = None
            elif stuck_since is None:
                stuck_since = now
            elif now - stuck_since > stuck_s:
                print(library.describe(), file=sys.stderr, flush=True)
                library.end(f"stuck: for {stuck_s:g} s every thread has waited for something that never came")
    end_members(library)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--launcher", type=int, required=True, help="process id; its end ends the domain")
    parser.add_argument("--stuck-s", type=float, default=30.0, help="0: never end a domain for being stuck")
    parser.add_argument("--tolerate-deaths", action="store_true", help="go on when a member is killed")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    monitor(arguments.path, arguments.launcher, arguments.stuck_s, arguments.tolerate_deaths)


if __name__ == "__main__":
    main()
