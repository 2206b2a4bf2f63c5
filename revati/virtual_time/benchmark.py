"""What virtual time over many processes costs: ``python -m revati.virtual_time.benchmark``.

Prints the real time per jump of the clock for a few numbers of processes, and the share of a run's wall time
that coordination takes when emulated workers burn CPU like an engine's.
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
from dataclasses import dataclass
from functools import cache

from revati.virtual_time.domain import Domain, DomainCounters

_RESULT = struct.Struct("<qqq")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Real time of a benchmark program, its own work included, and how many jumps or steps it made."""

    wall_ns: int
    work_ns: int
    rounds: int


def measure(program: str, processes: int, rounds: int, work_us: int) -> tuple[Measurement, DomainCounters]:
    """Run one of the programs below in a domain of its own."""
    command = [sys.executable, "-m", "revati.virtual_time.benchmark", "--program", program]
    command += ["--processes", str(processes), "--rounds", str(rounds), "--work-us", str(work_us)]
    with Domain.create() as domain:
        process = domain.start(command, stdout=subprocess.PIPE)
        output, _ = process.communicate()
        if process.returncode or domain.ended:
            raise RuntimeError(f"{program}: {domain.ended or process.returncode}")
        return Measurement(*_RESULT.unpack(output)), domain.counters()


# ---- programs, members of a domain ----


def sleepers(processes: int, rounds: int, work_us: int) -> tuple[int, int]:
    """All sleep, each for its own time: every jump wakes one."""

    def child(index: int) -> int:
        for _ in range(rounds // processes):
            time.sleep(0.001 + index * 1e-6)
        return 0

    return _run(processes, child)


def ring(processes: int, rounds: int, work_us: int) -> tuple[int, int]:
    """A message goes round; who has it sleeps for 1 ms, the others wait for their descriptors."""
    pipes = [os.pipe() for _ in range(processes)]
    os.write(pipes[0][1], b"x")

    def child(index: int) -> int:
        for _ in range(rounds // processes):
            os.read(pipes[index][0], 1)
            time.sleep(0.001)
            os.write(pipes[(index + 1) % processes][1], b"x")
        return 0

    return _run(processes, child)


def workers(processes: int, rounds: int, work_us: int) -> tuple[int, int]:
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

    def child(index: int) -> int:
        charge, own_ns = _library().revati_charge, 0
        for _ in range(rounds):
            os.read(work[index][0], 1)
            begin_ns, cpu_ns = _real_now_ns(), time.thread_time_ns()
            while time.thread_time_ns() - cpu_ns < work_us * 1000:
                pass
            own_ns += _real_now_ns() - begin_ns
            charge(ctypes.c_int64(work_us * 1000))
            time.sleep(0.006)
            os.write(done_write, b"x")
        return own_ns

    return _run(processes, child, scheduler)


def _run(processes: int, child: Callable[[int], int], parent: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Real ns that the children take, and the sum of what they say is their own."""
    begin_s = time.monotonic() + 60  # in virtual time: all are up
    results_read, results_write = os.pipe()
    for index in range(processes):
        if os.fork() == 0:
            time.sleep(begin_s - time.monotonic())
            own_ns = child(index)
            os.write(results_write, struct.pack("<qq", _real_now_ns(), own_ns))
            time.sleep(60)  # nobody's exit disturbs the others
            os._exit(0)
    time.sleep(begin_s - time.monotonic() - 0.001)
    begin_ns = _real_now_ns()
    parent()
    ends_ns, owns_ns = zip(*(struct.unpack("<qq", os.read(results_read, 16)) for _ in range(processes)), strict=True)
    for _ in range(processes):
        os.wait()
    return max(ends_ns) - begin_ns, sum(owns_ns)


PROGRAMS: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "sleepers": sleepers,
    "ring": ring,
    "workers": workers,
}


def _real_now_ns() -> int:
    return int(_library().revati_real_now())


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.revati_real_now.restype = ctypes.c_int64
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--rounds", type=int, default=2000, help="jumps to measure")
    parser.add_argument("--steps", type=int, default=50, help="engine steps to measure")
    parser.add_argument("--work-us", type=int, default=2000, help="CPU time that a worker burns per engine step")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program:
        count = arguments.processes[0]
        result = PROGRAMS[arguments.program](count, arguments.rounds, arguments.work_us)
        sys.stdout.buffer.write(_RESULT.pack(*result, arguments.rounds))
        return
    for processes in arguments.processes:
        for program, meaning in (("sleepers", "timers only"), ("ring", "a message before each")):
            result, _ = measure(program, processes, arguments.rounds, 0)
            cost_us = result.wall_ns / result.rounds / 1e3
            print(f"{processes:3d} processes, {meaning:21s} {cost_us:7.1f} µs per jump")
    most = max(arguments.processes)
    result, counters = measure("workers", most, arguments.steps, arguments.work_us)
    share = 1 - result.work_ns / result.wall_ns
    passes = counters.grants / result.rounds
    per_step_us = (result.wall_ns - result.work_ns) / result.rounds / 1e3
    print(
        f"{most} workers, {arguments.work_us} µs of CPU per step: {100 * share:.2f} % of"
        f" {result.wall_ns * 1e-9:.2f} s are coordination ({passes:.0f} grants, {per_step_us:.0f} µs per step)"
    )


if __name__ == "__main__":
    main()
