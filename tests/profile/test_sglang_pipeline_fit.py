"""Host costs of SGLang's pipeline stages, from the step log of a measured run."""

from __future__ import annotations

import pytest

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
