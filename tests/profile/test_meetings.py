"""What ranks that meet in an all-reduce were seen to do, as rows of the kernel database."""

from __future__ import annotations

import pytest

from revati.profile.meetings import Observed, algorithm, rows_of

ONE_STAGE = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*, vllm::RankSignals)"


SINGLE = 64  # tokens at which each product is one kernel


def single(gap_us: float) -> Observed:
    return Observed(SINGLE, 524288, 37.0, 29.0 + 2 * gap_us, 29.0, 2, ONE_STAGE, [5.0, 5.0])


def test_the_last_one_to_come_does_not_wait() -> None:
    """Of each call the shortest kernel is that of the last rank; the others' are longer by their wait."""
    early = Observed(8, 65536, 36.0, 30.0, 29.0, 3, ONE_STAGE, [5.0, 4.5, 6.0])
    late = Observed(8, 65536, 36.0, 31.0, 29.0, 3, ONE_STAGE, [4.0, 4.5, 4.0])
    gap, meeting, wait, *_ = rows_of([[early, single(0.1)], [late, single(0.3)]])
    assert (gap["kind"], gap["kernel"], gap["num_tokens"]) == ("gap", "graph", SINGLE)
    assert gap["median_us"] == pytest.approx(0.2)
    assert (wait["kernel"], wait["count"], wait["median_us"]) == ("wait", 3, 0.5)  # of 0.5, 0 and 1
    assert (meeting["kernel"], meeting["median_us"]) == ("meeting", pytest.approx(5.5 - 0.5 - 0.2))
    for row in (meeting, wait):
        assert (row["variant"], row["ranks"], row["nbytes"], row["m"]) == ("custom_1stage", 2, 65536, 8)


def test_algorithms_are_told_by_kernels() -> None:
    assert algorithm(ONE_STAGE.replace("1stage", "2stage")) == "custom_2stage"
    assert algorithm("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgs)") == "nccl"


def test_ranks_saw_the_same_sizes() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rows_of([[single(0.1), single(0.1)], [single(0.1)]])
