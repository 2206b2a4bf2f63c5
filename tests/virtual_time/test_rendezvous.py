"""Collectives of several processes complete when the last rank that counts is ready."""

from __future__ import annotations

import pytest

from tests.virtual_time.members import run_ranks

# One rank: sleeps, takes part in a collective on its own GPU, and prints when its host could go on (after
# the launch) and when the GPU was done, in ms of virtual time since the start of all.
COLLECTIVES = """
sleep_ms, what = float(sys.argv[3]), sys.argv[4]
stream = new_stream()
sleep_until_ms(sleep_ms)
peer, count = ctypes.c_int(1 - rank), ctypes.c_size_t(1024)
for _ in range(3):
    if what == "all_reduce":
        assert nccl.ncclAllReduce(None, None, count, 7, 0, comm, stream) == 0
    elif what == "broadcast":
        assert nccl.ncclBroadcast(None, None, count, 7, 0, comm, stream) == 0
    else:
        function = nccl.ncclSend if rank == 0 else nccl.ncclRecv
        assert function(None, count, 7, peer, comm, stream) == 0
launched_ms = since_begin_ms()
assert cuda.cudaStreamSynchronize(stream) == 0
print(launched_ms, since_begin_ms())
"""


def launched_and_done_ms(what: str, sleeps_ms: tuple[float, float]) -> list[list[float]]:
    """(end of the launches, completion) of each rank."""
    return run_ranks(COLLECTIVES, [(sleep_ms, what) for sleep_ms in sleeps_ms])


@pytest.mark.parametrize("late_rank", [0, 1])
def test_an_all_reduce_completes_when_the_last_rank_arrives(late_rank: int) -> None:
    sleeps_ms = (5.0, 0.0) if late_rank == 0 else (0.0, 5.0)
    for _, done in launched_and_done_ms("all_reduce", sleeps_ms):
        assert done == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("what", ["broadcast", "send"])
def test_a_receiver_waits_for_its_source_on_the_gpu_only(what: str) -> None:
    (_, source_done), (launched, done) = launched_and_done_ms(what, (5.0, 0.0))
    assert source_done == pytest.approx(5.0, abs=0.1)
    assert launched == pytest.approx(0.0, abs=0.1)
    assert done == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("what", ["broadcast", "send"])
def test_a_source_does_not_wait_for_its_receivers(what: str) -> None:
    (launched, source_done), (_, done) = launched_and_done_ms(what, (0.0, 5.0))
    assert launched == pytest.approx(0.0, abs=0.1)
    assert source_done == pytest.approx(0.0, abs=0.1)
    assert done == pytest.approx(5.0, abs=0.1)
