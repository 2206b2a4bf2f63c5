"""Host costs of SGLang's pipeline stages, from the step log of a measured run."""

from __future__ import annotations

import numpy as np
import pytest

from revati.profile.sglang_host_logs import inputs
from revati.profile.sglang_pipeline_fit import TooFewTurnsError, pipeline_phases
from revati.validate.options import validation_dir


def test_a_decode_without_a_graph_costs_no_more_a_request_than_one_with() -> None:
    run = validation_dir() / "runs" / "sglang-llama13b_tp1_pp4_sg_r12"
    phases = pipeline_phases([run], layers=10)
    for phase in ("schedule", "update"):
        eager, full = phases[phase]["eager"], phases[phase]["full"]
        assert eager["per_request_us"] == full.get("per_request_us", 0.0)
        assert eager["per_prefill_us"] > 10 * eager["per_request_us"]


def test_two_stages_tell_what_taking_tokens_costs_where_they_wait_for_no_gpu() -> None:
    runs = validation_dir() / "runs"
    two = pipeline_phases([runs / "sglang-x2-llama13b_tp1_pp2_sg_r12"], layers=20)
    four = pipeline_phases([runs / "sglang-llama13b_tp1_pp4_sg_r12"], layers=10)
    assert two["wake"] == two["collect"]
    assert 1.0 < two["collect"]["any"]["base_us"] / four["collect"]["any"]["base_us"] < 3.0  # a slower host


def test_a_saturated_run_has_too_few_turns() -> None:
    with pytest.raises(
        TooFewTurnsError, match=r"off_2048x32: fewer than 20 observations of .*collect \(any\)"
    ):
        pipeline_phases([validation_dir() / "runs" / "sglang-x2-llama13b_tp1_pp2_off_2048x32"], layers=20)


def test_requests_that_come_together_share_what_the_first_one_costs() -> None:
    received = np.array([0, 1, 1, 1, 4, 2])
    new_us = np.array([0.0, 290.0, 300.0, 310.0, 600.0, 250.0])  # the last one took less than one alone
    (idle, alone, alone_us), (busy, several, further_us) = inputs(new_us, received)
    assert (idle, alone_us[alone].tolist()) == ("idle", [290.0, 300.0, 310.0])
    assert (busy, further_us[several].tolist()) == ("busy", [100.0, 1.0])
