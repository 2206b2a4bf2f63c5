"""What counts as an observation of a host phase."""

import numpy as np

from revati.profile.host_samples import back_to_back


def test_requests_follow_back_to_back_only_if_they_were_due() -> None:
    sent_s = np.array([1.0, 1.0001, 1.0003, 1.0006, 1.0016])
    arrival_s = np.array([1.0, 1.0, 1.0, 1.0005, 1.0006])  # the fourth came late, the fifth took too long
    assert back_to_back(sent_s, arrival_s).tolist() == [True, True, False, False]
