"""Workloads whose prompts have something in common, and the prompts that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.deployment.prompts import Turns, make_requests
from revati.engines.tokens import ordinary_token_id
from revati.workload import (
    FixedLengths,
    LognormalLengths,
    Sessions,
    SharedPrefixes,
    Workload,
    WorkloadError,
    prefixes_from_config,
    sessions_from_config,
)
from revati.workload.workload import COLUMNS, SHARING_COLUMNS

VOCABULARY = 32000


def poisson(count: int = 2000, rate: float = 10.0, seed: int = 0, **parts: Any) -> Workload:
    return Workload.from_poisson(
        "w", request_rate_per_s=rate, num_requests=count, lengths=LognormalLengths(), seed=seed, **parts
    )


def test_a_prefix_comes_on_top_and_leaves_arrivals_and_outputs_alone() -> None:
    plain, shared = poisson(), poisson(prefixes=SharedPrefixes(groups=4, tokens=1000))
    assert np.array_equal(shared.prompt_tokens, plain.prompt_tokens + 1000)
    assert np.array_equal(shared.arrival_s, plain.arrival_s)
    assert np.array_equal(shared.output_tokens, plain.output_tokens)
    assert shared.sharing is not None
    assert set(shared.sharing.prefix_group) == {0, 1, 2, 3}
    assert set(shared.sharing.prefix_tokens) == {1000}


def test_skew_makes_groups_unequally_popular() -> None:
    shared = poisson(20_000, prefixes=SharedPrefixes(groups=3, tokens=1, skew=1.0)).sharing
    assert shared is not None
    counts = np.bincount(shared.prefix_group)
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[2] == pytest.approx(3, rel=0.1)


def test_sessions_keep_the_rate_and_think_between_turns() -> None:
    sessions = Sessions(turns=5, think_time_s=2.0, context_tokens_max=1 << 20)
    workload = poisson(20_000, rate=10.0, sessions=sessions)
    shared = workload.sharing
    assert shared is not None
    assert len(workload) / workload.arrival_s[-1] == pytest.approx(10, rel=0.05)
    assert (np.diff(workload.arrival_s) >= 0).all()
    assert set(np.bincount(shared.session)) == {5}
    assert np.count_nonzero(shared.think_s) == 16_000
    assert shared.think_s[shared.think_s > 0].mean() == pytest.approx(2, rel=0.05)
    following = shared.next_turn()
    turns, later = np.flatnonzero(following >= 0), following[following >= 0]
    assert np.allclose(workload.arrival_s[later] - workload.arrival_s[turns], shared.think_s[later])
    assert (workload.prompt_tokens[later] > (workload.prompt_tokens + workload.output_tokens)[turns]).all()


def test_a_session_ends_before_its_context_is_full() -> None:
    workload = poisson(sessions=Sessions(turns=50, think_time_s=0.0, context_tokens_max=3000))
    assert (workload.prompt_tokens + workload.output_tokens).max() <= 3000
    assert workload.sharing is not None
    assert 2 < np.bincount(workload.sharing.session).mean() < 50
    with pytest.raises(WorkloadError, match="less than the 1152 tokens of a first turn"):
        Workload.from_offline(
            "w", num_requests=1, lengths=FixedLengths(), sessions=Sessions(context_tokens_max=1000)
        )


def test_prompts_of_a_group_begin_alike_and_go_on_differently() -> None:
    workload = poisson(40, prefixes=SharedPrefixes(groups=2, tokens=64))
    assert workload.sharing is not None
    prompts = [request.prompt_token_ids for request in make_requests(workload, VOCABULARY, seed=1)]
    beginnings = {
        (int(group), tuple(prompt[:64]))
        for group, prompt in zip(workload.sharing.prefix_group, prompts, strict=True)
    }
    assert len(beginnings) == 2
    assert len({tuple(prompt[64:]) for prompt in prompts}) == 40
    assert [len(prompt) for prompt in prompts] == workload.prompt_tokens.tolist()
    again = make_requests(poisson(10, prefixes=SharedPrefixes(groups=2, tokens=64)), VOCABULARY, seed=1)
    assert {tuple(request.prompt_token_ids[:64]) for request in again} == {text for _, text in beginnings}
    other = make_requests(workload, VOCABULARY, seed=2)
    assert other[0].prompt_token_ids[:64] != prompts[0][:64]


def test_a_turn_repeats_the_turn_before_and_its_answer() -> None:
    workload = poisson(30, sessions=Sessions(turns=3), prefixes=SharedPrefixes(groups=2, tokens=16))
    requests, turns = make_requests(workload, VOCABULARY, seed=0), Turns(workload)
    assert len(turns.first) == 10
    seen = set(turns.first)
    for request in requests:
        if (turn := turns.after(request.index)) is None:
            continue
        seen.add(turn.index)
        length = len(request.prompt_token_ids)
        answer = [ordinary_token_id(length + i, VOCABULARY) for i in range(request.output_tokens)]
        common = request.prompt_token_ids + answer
        following = requests[turn.index]
        assert following.prompt_token_ids[: len(common)] == common
        assert len(following.prompt_token_ids) > len(common)
        assert following.session == request.session is not None
    assert seen == set(range(30))


def test_prompts_without_sharing_stay_what_they_were() -> None:
    rng = np.random.default_rng(7)
    workload = poisson(5)
    for request, length in zip(make_requests(workload, VOCABULARY, 7), workload.prompt_tokens, strict=True):
        assert request.prompt_token_ids == rng.integers(0, VOCABULARY, int(length)).tolist()
        assert request.session is None


def test_a_trace_keeps_what_is_shared(tmp_path: Path) -> None:
    workload = poisson(60, sessions=Sessions(turns=4), prefixes=SharedPrefixes(groups=3, tokens=8))
    workload.to_parquet(tmp_path / "trace.parquet")
    again = Workload.from_trace(tmp_path / "trace.parquet", "w").first(50)
    assert again.sharing is not None
    assert workload.sharing is not None
    for column in COLUMNS:
        assert np.array_equal(getattr(again, column), getattr(workload, column)[:50])
    for column in SHARING_COLUMNS:
        assert np.array_equal(getattr(again.sharing, column), getattr(workload.sharing, column)[:50])


TRACE = {
    "arrival_s": [0.0, 1.0], "prompt_tokens": [10, 30], "output_tokens": [5, 5],
    "prefix_group": [-1, -1], "prefix_tokens": [0, 0], "session": [3, 3], "think_s": [0.0, 1.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": None}, "but not all of prefix_group, prefix_tokens, session, think_s"),
        ({"prompt_tokens": [10, 15]}, "more prompt tokens than the turn before"),
        ({"think_s": [0.0, -1.0]}, "not negative"),
        ({"prefix_group": [0, -1]}, "prefix_tokens must be from 1"),
        ({"prefix_group": [0, -1], "prefix_tokens": [11, 0]}, "prefix_tokens must be from 1"),
    ],
)
def test_impossible_traces_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    columns = {name: values for name, values in {**TRACE, **changes}.items() if values is not None}
    pq.write_table(pa.table(columns), tmp_path / "trace.parquet")
    with pytest.raises(WorkloadError, match=message):
        Workload.from_trace(tmp_path / "trace.parquet")


def test_options_teach() -> None:
    assert prefixes_from_config({}) is sessions_from_config({}) is None
    with pytest.raises(WorkloadError, match="unknown option 'size' of prefixes; use groups, tokens, skew"):
        prefixes_from_config({"size": 3})
    with pytest.raises(WorkloadError, match=r"'turns' of sessions must be an integer, got 1\.5"):
        sessions_from_config({"turns": 1.5})
    with pytest.raises(WorkloadError, match="1 or more"):
        prefixes_from_config({"groups": 0})
