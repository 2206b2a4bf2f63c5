"""Host costs of SGLang's tensor-parallel ranks, from the step log of a measured run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from revati.profile.sglang_host_fit import burst_calls, frontend_samples, message_way_us
from revati.profile.sglang_host_logs import Log, of_slowest_rank, samples_of
from revati.validate import turns
from revati.validate.options import validation_dir


def measured(name: str) -> Log:
    run = validation_dir() / "runs" / name
    log = turns.read(run, json.loads((run / "run.json").read_text()))
    assert log
    return log


def rank(work_s: list[float], begin_s: list[float]) -> dict[str, Any]:
    """Turns that all ranks begin to schedule together, at whole seconds."""
    scheduled = np.arange(len(work_s), dtype=np.float64)
    launched = scheduled + np.array(work_s)
    unknown = np.full(len(work_s), np.nan)
    return {
        "step": np.arange(len(work_s)),
        "recv_begin_s": np.array(begin_s),
        "schedule_begin_s": scheduled,
        "run_end_s": launched,
        "wake_s": unknown,
        "end_s": unknown,
        "send_begin_s": scheduled,
        "send_end_s": launched,
    }


def test_a_turn_is_the_slowest_ranks_and_its_receipt_that_of_who_waited_for_nobody() -> None:
    first, second = rank([0.5, 0.2], [-0.1, 0.9]), rank([0.3, 0.6], [-0.2, 0.7])
    merged = of_slowest_rank([first, second])
    assert (merged["run_end_s"] - merged["schedule_begin_s"]).tolist() == pytest.approx([0.5, 0.6])
    assert (merged["schedule_begin_s"] - merged["recv_begin_s"]).tolist() == pytest.approx([0.1, 0.1])
    assert merged["begin_s"].tolist() == [-0.1, 0.9]
    assert merged["send_end_s"].tolist() == first["send_end_s"].tolist()


def test_ranks_that_took_different_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="different turns"):
        of_slowest_rank([rank([0.1, 0.1], [0.0, 0.9]), rank([0.1], [0.0])])


def test_a_broadcast_takes_as_long_in_decodes_of_few_requests_as_of_many() -> None:
    few = samples_of(measured("sglang-x2-llama13b_tp2_pp1_sg_r12"))["broadcast", "any"]
    many = samples_of(measured("sglang-x2-llama13b_tp2_pp1_off_sg"))["broadcast", "any"]
    assert np.median(many.cost_us[0]) == pytest.approx(np.median(few.cost_us[0]), rel=0.1)


def test_decodes_without_a_graph_are_scheduled_and_updated_like_others() -> None:
    log = measured("sglang-x2-llama13b_tp2_pp1_off_sg")
    found = samples_of(log)
    assert (log.kinds("mode") == "eager").sum() > 100
    assert {kind for phase, kind in found if phase in ("schedule", "update")} == {"full", "piecewise"}
    assert ("execute", "eager") in found


def test_launches_that_wait_for_the_gpu_are_no_cost_of_the_host() -> None:
    log = measured("sglang-x2-llama13b_tp2_pp1_sg_r20")
    launch_us = log.us("run_begin_s", "run_end_s")[log.kinds("mode") == "piecewise"]
    unblocked = np.concatenate(samples_of(log)["execute", "piecewise"].cost_us)
    assert launch_us.max() > 30e3 > 20e3 > unblocked.max()


def test_launches_of_a_deep_model_wait_behind_long_prefills() -> None:
    log = measured("sglang-many-qwen25_14b_tp1_pp1_off_sg")
    launch_us = log.us("run_begin_s", "run_end_s")[log.kinds("mode") == "piecewise"]
    assert len(launch_us) == 13
    assert np.median(launch_us) > 90e3  # one behind the other, each of 8192 tokens
    unblocked = np.concatenate(samples_of(log)["execute", "piecewise"].cost_us)
    assert len(unblocked) <= 2
    assert unblocked.max() < 20e3


def test_a_call_in_a_burst_costs_its_client_the_time_to_the_next_one() -> None:
    tokens = [10, 1000, 10, 2000, 500, 100, 700]
    sent_s = np.cumsum([0.0] + [1e-6 * (100 + 0.05 * n) for n in tokens[:-1]])
    burst = [
        {"arrival_s": 0.0, "submitted_s": float(at), "prompt_tokens": n}
        for at, n in zip(sent_s, tokens, strict=True)
    ]
    busy = burst_calls([burst])["frontend_submit"]["busy"]
    assert busy["latency_us"] == pytest.approx(100, abs=0.5)
    assert busy["per_token_us"] == pytest.approx(0.05, abs=0.001)
    assert busy["samples"] == 6
    one_by_one = [request | {"arrival_s": request["submitted_s"]} for request in burst]
    assert burst_calls([one_by_one]) == {}


def test_how_long_a_request_is_on_its_way_shows_in_which_turn_found_it() -> None:
    turn_s, way_s = 0.007, 0.0005
    sent_s = np.cumsum(np.random.default_rng(1).exponential(0.05, 400))
    begin_s = np.arange(0.0, sent_s[-1] + 1.0, turn_s)
    received = np.bincount(np.searchsorted(begin_s, sent_s + way_s), minlength=len(begin_s))
    steps = {"step": np.arange(len(begin_s)), "received": received, "recv_begin_s": begin_s}
    assert message_way_us(steps, sent_s) == pytest.approx(1e6 * way_s, abs=50)


def test_requests_are_as_long_on_their_way_to_a_fast_host_as_to_a_slow_one() -> None:
    ways_us = []
    for name in ("sglang-llama13b_tp1_pp1_sg_r12", "sglang-llama31_8b_tp1_pp1_sg_r20"):
        log = measured(name)
        rows = pq.read_table(validation_dir() / "runs" / name / "requests.parquet")
        ways_us.append(message_way_us(log.steps, rows["submitted_s"].to_numpy()))
    assert ways_us == pytest.approx([525, 525], rel=0.2)


def test_a_tokens_way_to_its_client_begins_where_the_turn_ends() -> None:
    found = frontend_samples(measured("sglang-llama13b_tp1_pp1_sg_r12"))
    cost_us, requests = np.concatenate(found.cost_us), np.concatenate(found.features)[:, 1]
    assert 300 < np.median(cost_us[requests == 1]) < 450
    assert np.median(cost_us[requests > 16]) > 800
