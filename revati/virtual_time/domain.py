"""Domains of virtual time: create one, start programs in it, wait for them, end it.

    with Domain.create() as domain:
        server = domain.start(["python", "server.py"])
        client = domain.start(["python", "client.py"])
        domain.wait([client])

`docs/virtual_time.md` says what is virtual in a domain, and how it works.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from revati.interception.domain_library import DOMAIN_LIBRARY, DomainCounters, DomainLibrary
from revati.virtual_time.teardown import end_members

# Watchdogs that look every 100 ms whether a real device still makes progress.  Only threads that nobody waits
# for: what a real-time thread does takes virtual time that depends on this machine.
REAL_TIME_THREADS = ("pt_nccl_*",)
# gloo's event loops look for work every 10 ms, in every process.
IDLE_LIBRARIES = ("libtorch*", "libgloo*")
_numbers = itertools.count()
_POLL_S = 0.01


class DomainEndedError(RuntimeError):
    """The domain was ended before the programs that were waited for: killed, crashed or stuck members."""


class Domain:
    """A shared virtual clock and the programs on it; use it as a context manager."""

    def __init__(self, path: Path, library: DomainLibrary, monitor: subprocess.Popen[bytes]) -> None:
        self.path, self._library, self._monitor = path, library, monitor
        self._started: list[subprocess.Popen[Any]] = []

    @classmethod
    def create(
        cls,
        *,
        cpu_factor: float = 0.0,
        skew_us: float = 0.0,
        stuck_s: float = 30.0,
        real_time_threads: Sequence[str] = REAL_TIME_THREADS,
        idle_libraries: Sequence[str] = IDLE_LIBRARIES,
        tolerate_deaths: bool = False,
    ) -> Self:
        """A new domain, its clocks going on from the present.

        Args:
            cpu_factor: virtual time that passes per CPU time of a member's thread; 0: only charges and
                waits move time, and results do not depend on this machine.
            skew_us: how far a thread may run ahead of the others before it waits; useful with a CPU factor.
            stuck_s: real time after which a domain in which nobody can go on is diagnosed and ended; 0:
                never, for servers whose clients are outside.
            real_time_threads: glob patterns of names of threads whose waits last real time.
            idle_libraries: glob patterns of libraries whose loops around ``epoll_wait`` may wake once a
                virtual second instead, while they do nothing else.
            tolerate_deaths: go on when a member is killed from outside or crashes.
        """
        library = DomainLibrary()
        path = Path(f"/dev/shm/revati-domain-{os.getpid()}-{next(_numbers)}")
        library.create(
            path, int(skew_us * 1e3), cpu_factor, ",".join(real_time_threads), ",".join(idle_libraries)
        )
        try:
            library.attach(path)
            command = [sys.executable, "-m", "revati.virtual_time.domain_monitor", str(path)]
            command += ["--launcher", str(os.getpid()), "--stuck-s", str(stuck_s)]
            command += ["--tolerate-deaths"] * tolerate_deaths
            monitor = subprocess.Popen(command, env=_environment_of_monitor(), start_new_session=True)
        except BaseException:
            path.unlink()
            raise
        return cls(path, library, monitor)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` plus what makes a program join; it may hold the emulated GPUs' environment already."""
        environment = dict(base)
        preload = [str(DOMAIN_LIBRARY)]
        if inherited := base.get("LD_PRELOAD"):
            preload.append(inherited)
        environment["LD_PRELOAD"] = os.pathsep.join(preload)
        environment["REVATI_DOMAIN"] = str(self.path)
        return environment

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program in the domain; ``options`` are those of `subprocess.Popen`.

        No time passes before it has joined.
        """
        self._library.reserve()
        environment = self.environment(os.environ if env is None else env)
        process = subprocess.Popen(command, env=environment, **options)
        self._started.append(process)
        return process

    def wait(self, processes: Iterable[subprocess.Popen[Any]], timeout_s: float | None = None) -> list[int]:
        """Exit codes of programs, when all have exited.

        Raises:
            DomainEndedError: if the domain was ended first.
            TimeoutError: after ``timeout_s`` of real time.
        """
        waiting = list(processes)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while any(process.poll() is None for process in waiting):
            if (reason := self.ended) is not None:
                raise DomainEndedError(reason)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"programs of the domain still run after {timeout_s} s\n{self.describe()}")
            time.sleep(_POLL_S)
        codes = [process.returncode for process in waiting]
        if any(code < 0 for code in codes):  # the monitor may be about to say why
            time.sleep(5 * _POLL_S)
        if any(code < 0 for code in codes) and (reason := self.ended) is not None:
            raise DomainEndedError(reason)
        return codes

    @property
    def ended(self) -> str | None:
        """Why the domain was ended; None while it lives."""
        if self._library.ended() is None and self._monitor.poll() is not None:
            self._library.end("its monitor has gone")
        return self._library.ended()

    @property
    def now_s(self) -> float:
        """Virtual time since the creation."""
        return self._library.now_ns() * 1e-9

    def hold(self) -> None:
        """Stop all members where they are, and with them the clock, until `go_on`."""
        self._signal_members(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let members that `hold` has stopped run again."""
        self._signal_members(signal.SIGCONT)

    def _signal_members(self, number: signal.Signals) -> None:
        for pid in self._library.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def counters(self) -> DomainCounters:
        return self._library.counters()

    def monitor_cpu_ns(self) -> int:
        """CPU time that the monitor has used so far."""
        return int(Path(f"/proc/{self._monitor.pid}/schedstat").read_text().split()[0])

    def describe(self) -> str:
        """Who waits for what, a line per thread."""
        return self._library.describe()

    def end(self, reason: str = "ended by the launcher") -> None:
        """End the domain: its members are killed, its shared memory goes, and theirs."""
        self._library.end(reason)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._monitor.wait(timeout=10)
        self._monitor.kill()
        self._monitor.wait()
        end_members(self._library)  # the monitor may have been killed
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


def _environment_of_monitor() -> dict[str, str]:
    # It is no member, and finds this very package.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "REVATI_DOMAIN")
    }
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return environment
