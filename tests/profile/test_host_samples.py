"""What counts as an observation of a host phase."""

from pathlib import Path

import numpy as np

from revati.profile.host_logs import LockFree, Run, lock_free
from revati.profile.host_samples import back_to_back


def test_requests_follow_back_to_back_only_if_they_were_due() -> None:
    sent_s = np.array([1.0, 1.0001, 1.0003, 1.0006, 1.0016])
    arrival_s = np.array([1.0, 1.0, 1.0, 1.0005, 1.0006])  # the fourth came late, the fifth took too long
    assert back_to_back(sent_s, arrival_s).tolist() == [True, True, False, False]


def test_other_threads_run_while_the_core_waits_or_launches_kernels() -> None:
    nan = float("nan")
    steps = {
        "input_begin_s": np.array([0.0, 2.0]),
        "input_first_s": np.array([1.0, nan]),  # the first one waited for a request
        "execute_begin_s": np.array([1.2, 2.2]),
        "wait_begin_s": np.array([1.5, nan]),
        "wake_s": np.array([1.8, nan]),
        "step_end_s": np.array([2.0, 2.6]),
    }

    def free(ranks: int) -> LockFree:
        return lock_free(Run("", steps, [], 32, False, ranks, Path(), {}))

    assert free(1).begin_s.tolist() == [0.0, 1.2, 2.2]
    assert free(1).end_s.tolist() == [1.0, 1.8, 2.6]
    assert free(2).begin_s.tolist() == [0.0, 1.5]  # its workers launch
    times_s = np.array([0.5, 1.1, 1.3, 1.9])
    assert free(1).first(times_s).tolist() == [0.5, 1.2, 1.3, 2.2]
    assert free(1).covers(times_s, times_s + 0.1).tolist() == [True, False, True, False]
