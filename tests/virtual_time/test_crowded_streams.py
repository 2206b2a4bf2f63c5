"""Kernels beside a broadcast that waits for its source take longer, until the source is there."""

from __future__ import annotations

import pytest

from tests.virtual_time.copies import printed
from tests.virtual_time.members import run_ranks

# Rank 0 is the source. Each rank copies for some ms, takes part in two broadcasts at its time on a stream of
# its own, and copies again, each for a millisecond (two beside a broadcast that waits), waiting for each.
COPIES = """
from revati.interception.core import LaunchType, NativeCore
at_ms, before_ms, crowds = map(float, sys.argv[3:6])
def price(key, cost):
    if key.type == LaunchType.COPY:
        cost.duration_ns, cost.crowded = key.bytes, 1.0
    else:
        cost.crowds = int(crowds)
core = NativeCore()
core.set_resolver(price)
compute, side, memory = new_stream(), new_stream(), ctypes.c_void_p()
assert cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 24)) == 0
def copy(stream, ms):
    half = ctypes.c_void_p(memory.value + (1 << 23))
    assert cuda.cudaMemcpyAsync(half, memory, ctypes.c_size_t(int(ms * 1e6)), 3, stream) == 0
sleep_until_ms(at_ms)
if before_ms:
    copy(side, before_ms)
for _ in range(2):
    assert nccl.ncclBroadcast(None, None, ctypes.c_size_t(1), 7, 0, comm, side) == 0
if rank == 1:
    for _ in range(4):
        copy(compute, 1.0)
        assert cuda.cudaStreamSynchronize(compute) == 0
        print(since_begin_ms())
"""


def completions_ms(source: tuple[float, float], crowds: bool = True) -> list[float]:
    """Of rank 1's four copies, whose broadcast waits from 1 ms on.

    Args:
        source: when the source launches, and for how long its GPU works first.
    """
    return run_ranks(COPIES, [(*when, int(crowds)) for when in (source, (1.0, 0.0))])[1]


def test_copies_take_longer_while_the_broadcast_waits() -> None:
    assert completions_ms(source=(4.5, 0.0)) == pytest.approx([3, 5, 6, 7], abs=0.05)


def test_a_source_whose_time_is_known_ends_it_within_a_copy() -> None:
    """Half of the second copy's two milliseconds pass before the source's GPU is ready."""
    found = completions_ms(source=(0.0, 4.0))
    assert found == pytest.approx([3, 4.5, 5.5, 6.5], abs=0.05)


def test_other_collectives_that_wait_do_not_matter() -> None:
    found = completions_ms(source=(4.5, 0.0), crowds=False)
    assert found == pytest.approx([2, 3, 4, 5], abs=0.05)


def test_a_wait_that_the_process_itself_knows_crowds_too() -> None:
    """As of a stage that is folded into one process with the others."""
    first, second, third, behind = printed("""
for _ in range(2):
    core.stream_crowd(streams[0].value, begin + 2_000_000)
print(*(completion_ns(stream) for stream in (streams[1], streams[1], streams[1], streams[0])))
""")
    assert first == 1_500_000
    assert second == pytest.approx(2_500_000 + 500_000 / 3, rel=1e-3)
    assert third - second == 1_000_000
    assert behind == 3_000_000


def test_at_a_lower_clock_what_is_crowded_takes_longer_in_proportion() -> None:
    hot, crowded = printed("""
core.set_power_limits(100.0, 1_000_000, 100.0, 1_000_000, 0.0, 1.0)
watts, sensitivity = 200.0, 1.0
at = completion_ns(streams[1], 1_000_000_000)
for _ in range(2):
    at, before = completion_ns(streams[1]), at
core.stream_crowd(streams[0].value, begin + 20_000_000_000)
print(at - before, completion_ns(streams[1]) - at)
""")
    assert hot == pytest.approx(2_000_000, rel=1e-3)  # at half the clock
    assert crowded == pytest.approx(1.5 * hot, rel=1e-3)
