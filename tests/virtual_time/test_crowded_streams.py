"""Kernels beside a broadcast that waits for its source take longer, until the source is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.virtual_time.domain import Domain

# Rank 0 is the source. Each rank copies for some ms, takes part in two broadcasts at its time on a stream of
# its own, and copies again, each for a millisecond (two beside a broadcast that waits), waiting for each.
RANK = """
import ctypes, sys, time
from revati.interception.core import LaunchType, NativeCore
rank, at_ms, before_ms, crowds = int(sys.argv[1]), *map(float, sys.argv[2:5])
begin = float(sys.argv[5])
cuda, nccl = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libnccl.so.2")
class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]
def price(key, cost):
    if key.type == LaunchType.COPY:
        cost.duration_ns, cost.crowded = key.bytes, 1.0
    else:
        cost.crowds = int(crowds)
core = NativeCore()
core.set_resolver(price)
assert cuda.cudaSetDevice(rank) == 0
comm, compute, side, memory = (ctypes.c_void_p() for _ in range(4))
assert nccl.ncclCommInitRank(ctypes.byref(comm), 2, Id(b"the same in both"), rank) == 0
assert cuda.cudaStreamCreate(ctypes.byref(compute)) == 0
assert cuda.cudaStreamCreate(ctypes.byref(side)) == 0
assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 24)) == 0
def copy(stream, ms):
    half = ctypes.c_void_p(memory.value + (1 << 23))
    assert cuda.cudaMemcpyAsync(half, memory, ctypes.c_size_t(int(ms * 1e6)), 3, stream) == 0
time.sleep(max(0, begin + at_ms / 1e3 - time.monotonic()))
if before_ms:
    copy(side, before_ms)
for _ in range(2):
    assert nccl.ncclBroadcast(None, None, ctypes.c_size_t(1), 7, 0, comm, side) == 0
if rank == 1:
    for _ in range(4):
        copy(compute, 1.0)
        assert cuda.cudaStreamSynchronize(compute) == 0
        print(f"{(time.monotonic() - begin) * 1e3:.3f}")
"""


def completions_ms(tmp_path: Path, source: tuple[float, float], crowds: bool = True) -> list[float]:
    """Of rank 1's four copies, whose broadcast waits from 1 ms on.

    Args:
        source: when the source launches, and for how long its GPU works first.
    """
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    with Domain.create() as domain:
        environment = domain.environment(emulated_environment(load_gpu("h200"), 2, os.environ))
        clock = domain.start(
            [sys.executable, "-c", "import time; print(time.monotonic() + 3)"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        begin = clock.communicate()[0].strip()
        ranks = [
            domain.start(
                [sys.executable, str(program), str(rank), *map(str, when), str(int(crowds)), begin],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, when in enumerate((source, (1.0, 0.0)))
        ]
        assert domain.wait(ranks, timeout_s=60) == [0, 0]
        return [float(line) for line in ranks[1].communicate()[0].split()]


def test_copies_take_longer_while_the_broadcast_waits(tmp_path: Path) -> None:
    assert completions_ms(tmp_path, source=(4.5, 0.0)) == pytest.approx([3, 5, 6, 7], abs=0.05)


def test_a_source_whose_time_is_known_ends_it_within_a_copy(tmp_path: Path) -> None:
    """Half of the second copy's two milliseconds pass before the source's GPU is ready."""
    found = completions_ms(tmp_path, source=(0.0, 4.0))
    assert found == pytest.approx([3, 4.5, 5.5, 6.5], abs=0.05)


def test_other_collectives_that_wait_do_not_matter(tmp_path: Path) -> None:
    found = completions_ms(tmp_path, source=(4.5, 0.0), crowds=False)
    assert found == pytest.approx([2, 3, 4, 5], abs=0.05)


def test_a_wait_that_the_process_itself_knows_crowds_too() -> None:
    """As of a stage that is folded into one process with the others."""
    program = """
import ctypes
from revati.interception.core import NativeCore
cuda, core = ctypes.CDLL("libcudart.so.13"), NativeCore()
def price(key, cost):
    cost.duration_ns, cost.crowded = 1_000_000, 0.5
core.set_resolver(price)
core.set_gaps(0, 0)
streams, memory = [ctypes.c_void_p() for _ in range(2)], ctypes.c_void_p()
for stream in streams:
    assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 24)) == 0
half = ctypes.c_void_p(memory.value + (1 << 23))
def completion_ns(stream):
    assert cuda.cudaMemcpyAsync(half, memory, ctypes.c_size_t(1 << 22), 3, stream) == 0
    return core.stream_time(stream.value) - begin
begin = core.now_ns()
for _ in range(2):
    core.stream_crowd(streams[0].value, begin + 2_000_000)
print(*(completion_ns(stream) for stream in (streams[1], streams[1], streams[1], streams[0])))
"""
    environment = emulated_environment(load_gpu("h200"), 1, os.environ)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    first, second, third, behind = map(int, ran.stdout.split())
    assert first == 1_500_000
    assert second == pytest.approx(2_500_000 + 500_000 / 3, rel=1e-3)
    assert third - second == 1_000_000
    assert behind == 3_000_000
