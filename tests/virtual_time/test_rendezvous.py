"""Collectives of several processes complete when the last rank that counts is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.virtual_time.domain import Domain

# One rank: sleeps, takes part in a collective on its own GPU, and prints when its host could go on (after
# the launch) and when the GPU was done, in ms of virtual time since the start of all.
RANK = """
import ctypes, sys, time
rank, sleep_ms, what = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
cuda, nccl = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libnccl.so.2")
class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]
begin = float(sys.argv[4])
assert cuda.cudaSetDevice(rank) == 0
comm, stream = ctypes.c_void_p(), ctypes.c_void_p()
assert nccl.ncclCommInitRank(ctypes.byref(comm), 2, Id(b"the same in both"), rank) == 0
assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
time.sleep(max(0, begin + sleep_ms / 1e3 - time.monotonic()))
peer, count = ctypes.c_int(1 - rank), ctypes.c_size_t(1024)
for _ in range(3):
    if what == "all_reduce":
        assert nccl.ncclAllReduce(None, None, count, 7, 0, comm, stream) == 0
    elif what == "broadcast":
        assert nccl.ncclBroadcast(None, None, count, 7, 0, comm, stream) == 0
    else:
        function = nccl.ncclSend if rank == 0 else nccl.ncclRecv
        assert function(None, count, 7, peer, comm, stream) == 0
launched = time.monotonic()
assert cuda.cudaStreamSynchronize(stream) == 0
print(f"{(launched - begin) * 1e3:.3f} {(time.monotonic() - begin) * 1e3:.3f}")
"""


def run_ranks(what: str, sleeps_ms: tuple[float, float], tmp_path: Path) -> list[tuple[float, float]]:
    """(end of the launches, completion) of each rank, ms."""
    program = tmp_path / "rank.py"
    program.write_text(textwrap.dedent(RANK))
    with Domain.create() as domain:
        environment = domain.environment(emulated_environment(load_gpu("h200"), 2, os.environ))
        clock = domain.start(
            [sys.executable, "-c", "import time; print(time.monotonic() + 1)"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        begin = clock.communicate()[0].strip()
        ranks = [
            domain.start(
                [sys.executable, str(program), str(rank), str(sleep_ms), what, begin],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, sleep_ms in enumerate(sleeps_ms)
        ]
        assert domain.wait(ranks, timeout_s=60) == [0, 0]
        outputs = [process.communicate()[0].split() for process in ranks]
    return [(float(launched), float(done)) for launched, done in outputs]


@pytest.mark.parametrize("late_rank", [0, 1])
def test_an_all_reduce_completes_when_the_last_rank_arrives(late_rank: int, tmp_path: Path) -> None:
    sleeps_ms = (5.0, 0.0) if late_rank == 0 else (0.0, 5.0)
    for _, done in run_ranks("all_reduce", sleeps_ms, tmp_path):
        assert done == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("what", ["broadcast", "send"])
def test_a_receiver_waits_for_its_source_on_the_gpu_only(what: str, tmp_path: Path) -> None:
    (_, source_done), (launched, done) = run_ranks(what, (5.0, 0.0), tmp_path)
    assert source_done == pytest.approx(5.0, abs=0.1)
    assert launched == pytest.approx(0.0, abs=0.1)
    assert done == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("what", ["broadcast", "send"])
def test_a_source_does_not_wait_for_its_receivers(what: str, tmp_path: Path) -> None:
    (launched, source_done), (_, done) = run_ranks(what, (0.0, 5.0), tmp_path)
    assert launched == pytest.approx(0.0, abs=0.1)
    assert source_done == pytest.approx(0.0, abs=0.1)
    assert done == pytest.approx(5.0, abs=0.1)
