"""What virtual time over many processes costs: ``python -m revati.virtual_time.benchmark``.

Prints the real time per jump of the clock for a few numbers of processes, and the share of a run's wall time
that coordination takes when emulated workers burn CPU like an engine's: the CPU time that the same programs
take more than in real time. One thread of a domain runs at a time, so each such microsecond makes the run
longer by one. The run's wall time is taken to be its time on a core, which is all of it on a quiet machine.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from statistics import median

from revati.interception.domain_library import DOMAIN_LIBRARY, DomainCounters
from revati.virtual_time.domain import Domain

_BEGIN = b"+"  # a program writes it when all its processes are up
_RESULT = struct.Struct("<qqqqq")
_CHILD = struct.Struct("<qqqq")
_Result = tuple[int, int, int, int]  # the fields of a measurement but the last


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a benchmark program took; "own" is what it would have to do without a domain, too."""

    wall_ns: int
    own_wall_ns: int
    cpu_ns: int
    own_cpu_ns: int
    rounds: int  # jumps or engine steps
    monitor_cpu_ns: int = 0  # meanwhile, beside the programs


def measure(
    program: str, processes: int, rounds: int, work_us: int, real_time: bool = False
) -> tuple[Measurement, DomainCounters | None]:
    """Run one of the programs below in a domain of its own, or in real time."""
    command = [sys.executable, "-m", "revati.virtual_time.benchmark", "--program", program]
    command += ["--processes", str(processes), "--rounds", str(rounds), "--work-us", str(work_us)]
    if real_time:
        output = subprocess.check_output(command)
        return Measurement(*_RESULT.unpack(output[len(_BEGIN) :])), None
    with Domain.create() as domain:
        process = domain.start(command, stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.read(len(_BEGIN))
        monitor_cpu_ns = -domain.monitor_cpu_ns()
        output = process.stdout.read(_RESULT.size)
        monitor_cpu_ns += domain.monitor_cpu_ns()
        if process.wait() or domain.ended:
            raise RuntimeError(f"{program}: {domain.ended or process.returncode}")
        result = Measurement(*_RESULT.unpack(output))
        return replace(result, monitor_cpu_ns=monitor_cpu_ns), domain.counters()


# ---- programs, members of a domain ----


def sleepers(processes: int, rounds: int, work_us: int) -> _Result:
    """All sleep, each for its own time: every jump wakes one."""

    def child(index: int) -> tuple[int, int]:
        for _ in range(rounds // processes):
            time.sleep(0.001 + index * 1e-6)
        return 0, 0

    return _run(processes, child)


def ring(processes: int, rounds: int, work_us: int) -> _Result:
    """A message goes round; who has it sleeps for 1 ms, the others wait for their descriptors."""
    pipes = [os.pipe() for _ in range(processes)]
    os.write(pipes[0][1], b"x")

    def child(index: int) -> tuple[int, int]:
        for _ in range(rounds // processes):
            os.read(pipes[index][0], 1)
            time.sleep(0.001)
            os.write(pipes[(index + 1) % processes][1], b"x")
        return 0, 0

    return _run(processes, child)


def workers(processes: int, rounds: int, work_us: int) -> _Result:
    """Engine steps: a scheduler sends each worker a message, each computes, waits for its GPU and answers."""
    work = [os.pipe() for _ in range(processes)]
    done_read, done_write = os.pipe()

    def scheduler() -> None:
        for _ in range(rounds):
            for _, pipe in work:
                os.write(pipe, b"x")
            missing = processes
            while missing:
                missing -= len(os.read(done_read, missing))

    def child(index: int) -> tuple[int, int]:
        own_ns = 0
        for _ in range(rounds):
            os.read(work[index][0], 1)
            begin_ns, cpu_ns = _real_now_ns(), time.thread_time_ns()
            while time.thread_time_ns() - cpu_ns < work_us * 1000:
                pass
            own_ns += _real_now_ns() - begin_ns
            _library().revati_charge(ctypes.c_int64(work_us * 1000))
            time.sleep(0.006)
            os.write(done_write, b"x")
        return own_ns, rounds * work_us * 1000

    return _run(processes, child, scheduler)


def _run(
    processes: int, child: Callable[[int], tuple[int, int]], parent: Callable[[], None] = lambda: None
) -> _Result:
    """Run the children side by side; each returns its own wall and CPU time."""
    begin_s = time.monotonic() + (60 if _in_domain() else 3)  # all are up then
    results_read, results_write = os.pipe()
    for index in range(processes):
        if os.fork() == 0:
            time.sleep(begin_s - time.monotonic())
            cpu_ns = time.process_time_ns()
            own_wall_ns, own_cpu_ns = child(index)
            cpu_ns = time.process_time_ns() - cpu_ns
            os.write(results_write, _CHILD.pack(_real_now_ns(), own_wall_ns, cpu_ns, own_cpu_ns))
            time.sleep(60 if _in_domain() else 1)  # nobody's exit disturbs the others
            os._exit(0)
    time.sleep(begin_s - time.monotonic() - 0.001)
    os.write(1, _BEGIN)
    begin_ns, cpu_ns = _real_now_ns(), time.process_time_ns()
    parent()
    results = [_CHILD.unpack(os.read(results_read, _CHILD.size)) for _ in range(processes)]
    cpu_ns = time.process_time_ns() - cpu_ns
    for _ in range(processes):
        os.wait()
    ends_ns, owns_wall_ns, cpus_ns, owns_cpu_ns = zip(*results, strict=True)
    return max(ends_ns) - begin_ns, sum(owns_wall_ns), cpu_ns + sum(cpus_ns), sum(owns_cpu_ns)


PROGRAMS: dict[str, Callable[[int, int, int], _Result]] = {
    "sleepers": sleepers,
    "ring": ring,
    "workers": workers,
}


def _in_domain() -> bool:
    return "REVATI_DOMAIN" in os.environ


def _real_now_ns() -> int:
    return int(_library().revati_real_now())


@cache
def _library() -> ctypes.CDLL:
    """The preloaded library; in real time its charges do nothing, so that both runs make the same calls."""
    library = ctypes.CDLL(None if _in_domain() else str(DOMAIN_LIBRARY))
    library.revati_real_now.restype = ctypes.c_int64
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--rounds", type=int, default=2000, help="jumps to measure")
    parser.add_argument("--steps", type=int, default=50, help="engine steps to measure")
    parser.add_argument("--work-us", type=int, default=2000, help="CPU time of a worker per engine step")
    parser.add_argument("--repeats", type=int, default=5, help="comparisons with real time")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program:
        count = arguments.processes[0]
        own = PROGRAMS[arguments.program](count, arguments.rounds, arguments.work_us)
        sys.stdout.buffer.write(_RESULT.pack(*own, arguments.rounds))
        return
    for processes in arguments.processes:
        for program, meaning in (("sleepers", "timers only"), ("ring", "a message before each")):
            result, _ = measure(program, processes, arguments.rounds, 0)
            wall_us, cpu_us = result.wall_ns / result.rounds / 1e3, result.cpu_ns / result.rounds / 1e3
            print(
                f"{processes:3d} processes, {meaning:21s} {wall_us:6.1f} µs per jump, {cpu_us:6.1f} µs of CPU"
            )
    compare_with_real_time(max(arguments.processes), arguments.steps, arguments.work_us, arguments.repeats)


def compare_with_real_time(processes: int, steps: int, work_us: int, repeats: int) -> None:
    """Engine steps in a domain and in real time, in turn: machines differ more from minute to minute."""
    shares, monitor_shares, added_us, walls_ms, cpus_ms, grants = [], [], [], [], [], []
    for _ in range(repeats):
        result, counters = measure("workers", processes, steps, work_us)
        bare, _ = measure("workers", processes, steps, work_us, real_time=True)
        assert counters is not None
        added_ns = result.cpu_ns - bare.cpu_ns
        shares.append(added_ns / result.cpu_ns)
        monitor_shares.append(result.monitor_cpu_ns / result.wall_ns)
        added_us.append(added_ns / steps / processes * 1e-3)
        walls_ms.append(result.wall_ns / steps * 1e-6)
        cpus_ms.append(result.cpu_ns / steps * 1e-6)
        grants.append(counters.grants / steps)
    print(
        f"{processes} workers, {work_us} µs of CPU per engine step: coordination takes"
        f" {100 * median(shares):.2f} % of the run's time on a core"
        f" ({100 * min(shares):.2f} to {100 * max(shares):.2f} %),"
        f" {median(added_us):.1f} µs per worker and step;"
        f" the monitor, on another core, {100 * median(monitor_shares):.2f} %\n"
        f"a step: {median(walls_ms):.1f} ms of wall time, of which {median(cpus_ms):.1f} ms on a core;"
        f" {median(grants):.0f} grants of the token"
    )


if __name__ == "__main__":
    main()
