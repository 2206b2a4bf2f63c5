"""Host costs of SGLang's pipeline stages, from the step log of a measured run."""

from __future__ import annotations

from revati.profile.sglang_pipeline_fit import pipeline_phases
from revati.validate.options import validation_dir


def test_a_decode_without_a_graph_costs_no_more_a_request_than_one_with() -> None:
    run = validation_dir() / "runs" / "sglang-llama13b_tp1_pp4_sg_r12"
    phases = pipeline_phases([run], layers=10)
    for phase in ("schedule", "update"):
        eager, full = phases[phase]["eager"], phases[phase]["full"]
        assert eager["per_request_us"] == full.get("per_request_us", 0.0)
        assert eager["per_prefill_us"] > 10 * eager["per_request_us"]
