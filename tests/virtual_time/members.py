"""Programs in a domain of virtual time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.virtual_time.domain import Domain

PROGRAMS = Path(__file__).parent / "programs"
# What programs of `run_ranks` begin with; their own arguments follow from sys.argv[3] on.
RANK = """
import ctypes, sys, time
rank, begin = int(sys.argv[1]), float(sys.argv[2])
cuda, nccl = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libnccl.so.2")
class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]
comm = ctypes.c_void_p()
assert cuda.cudaSetDevice(rank) == 0
assert nccl.ncclCommInitRank(ctypes.byref(comm), 2, Id(b"the same in both"), rank) == 0
def new_stream():
    stream = ctypes.c_void_p()
    assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
    return stream
def sleep_until_ms(ms):
    time.sleep(max(0, begin + ms / 1e3 - time.monotonic()))
def since_begin_ms():
    return (time.monotonic() - begin) * 1e3
"""
BEGIN_S = 3  # of virtual time, for imports


class Members:
    """Starts Python programs in a domain and collects what they print."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def start(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "text": True, **options}
        return self.domain.start([sys.executable, "-u", "-c", code, *arguments], **options)

    def run(self, *programs: str, timeout_s: float = 30) -> list[str]:
        """What each program printed, when all have ended well."""
        processes = [self.start(code) for code in programs]
        assert self.domain.wait(processes, timeout_s) == [0] * len(programs)
        return [process.stdout.read().strip() for process in processes if process.stdout]


def run_ranks(code: str, arguments: Sequence[Sequence[object]]) -> list[list[float]]:
    """The numbers that two ranks print, each on a GPU of its own.

    Args:
        code: goes on after `RANK`; times count from one moment for both.
        arguments: each rank's.
    """
    with Domain.create() as domain:
        members = Members(domain)
        environment = domain.environment(emulated_environment(load_gpu("h200"), 2, os.environ))
        clock = members.start(f"import time; print(time.monotonic() + {BEGIN_S})", env=environment)
        begin = clock.communicate()[0].strip()
        ranks = [
            members.start(RANK + code, str(rank), begin, *map(str, own), env=environment)
            for rank, own in enumerate(arguments)
        ]
        assert domain.wait(ranks, timeout_s=60) == [0, 0]
        return [[float(word) for word in rank.communicate()[0].split()] for rank in ranks]


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write a line into its input."""
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()
