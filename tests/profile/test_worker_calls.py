"""What a worker's log and the engine core's together tell of the time between its calls."""

from __future__ import annotations

import numpy as np
import pytest

from revati.profile.worker_calls import between_calls, turnaround

EXECUTED_S, SAMPLED_S, PER_TOKEN_S = 40e-6, 60e-6, 0.1e-6


def logs(tokens: list[int], sent_s: list[float]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A worker that is busy with calls of 1 ms, or waits for a message; and its engine core.

    Args:
        tokens: of each step; one of decodes has as many as requests, four.
        sent_s: when each step's message had come; that for its sampling does right behind.
    """
    worker: dict[str, list[float]] = {}
    free_s = 0.0
    for count, there_s in zip(tokens, sent_s, strict=True):
        begin_s = max(free_s, there_s) + (count - 4) * PER_TOKEN_S
        row = {"execute_begin_s": begin_s, "execute_end_s": begin_s + 1e-3}
        row["sample_begin_s"] = row["execute_end_s"] + EXECUTED_S
        row["sample_end_s"] = row["sample_begin_s"] + 1e-3
        free_s = row["sample_end_s"] + SAMPLED_S
        for name, value in (row | {"scheduled_tokens": count}).items():
            worker.setdefault(name, []).append(value)
    steps = {"scheduled_tokens": tokens, "execute_end_s": sent_s, "sample_end_s": sent_s}
    return {k: np.array(v) for k, v in worker.items()}, {k: np.array(v) for k, v in steps.items()}


def test_a_worker_that_waits_for_a_message_does_not_tell() -> None:
    worker, steps = logs([4] * 4, [0.0, 0.001, 0.010, 0.011])  # the third one came to an idle worker
    to_sample_us, to_execute_us = between_calls(worker, steps)
    assert to_sample_us == pytest.approx([1e6 * EXECUTED_S] * 4)
    assert to_execute_us == pytest.approx([np.nan, 1e6 * SAMPLED_S, np.nan, 1e6 * SAMPLED_S], nan_ok=True)


def test_logs_that_do_not_fit_tell_nothing() -> None:
    worker, steps = logs([4, 5, 4, 4], [0.0] * 4)
    late = {name: values[1:] for name, values in steps.items()}  # the core's begins a step later
    assert np.isfinite(between_calls(worker, late)[1]).tolist() == [False, True, True, True]
    steps["scheduled_tokens"] = np.array([4, 4, 4, 4])
    assert np.isfinite(between_calls(worker, steps)[1]).tolist() == [False, False, True, True]


def test_prompts_cost_what_their_steps_take_longer_than_decodes() -> None:
    tokens = [4, 4, 4, 104, 4, 304] * 30
    worker, steps = logs(tokens, [0.0] * len(tokens))
    prompt_tokens = np.array(tokens) - 4
    features = np.zeros((len(tokens), 5))
    features[:, 0], features[:, 1], features[:, 2] = 1.0, 4.0, prompt_tokens
    features[:, 3] = prompt_tokens > 0
    phases = {phase: kinds["any"] for phase, kinds in turnaround([(worker, steps, features)]).items()}
    assert phases["worker_unpack"]["per_token_us"] == pytest.approx(1e6 * PER_TOKEN_S, rel=0.01)
    for phase, cost_s in (("executed", EXECUTED_S), ("sampled", SAMPLED_S)):
        cost_us = phases[phase].get("base_us", 0.0) + 4 * phases[phase].get("per_request_us", 0.0)
        assert cost_us == pytest.approx(1e6 * cost_s, rel=0.01)
    assert turnaround([]) == {}
