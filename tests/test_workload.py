"""Workloads: arrivals, lengths, traces."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.workload import FixedLengths, LognormalLengths, Workload, WorkloadError, lengths_from_config


def poisson(seed: int = 0, rate: float = 10.0) -> Workload:
    return Workload.from_poisson(
        "p", request_rate_per_s=rate, num_requests=20_000, lengths=LognormalLengths(), seed=seed
    )


def test_poisson_has_the_rate_and_exponential_gaps() -> None:
    gaps = np.diff(poisson().arrival_s)
    assert gaps.mean() == pytest.approx(0.1, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_sharegpt_like_lengths_have_the_documented_means_and_bounds() -> None:
    workload = poisson()
    assert workload.prompt_tokens.mean() == pytest.approx(235, rel=0.05)
    assert workload.output_tokens.mean() == pytest.approx(180, rel=0.05)
    assert workload.prompt_tokens.max() == 2048
    assert workload.output_tokens.max() == 600


def test_seed_decides_everything_and_rate_leaves_lengths_alone() -> None:
    assert np.array_equal(poisson(3).arrival_s, poisson(3).arrival_s)
    assert not np.array_equal(poisson(3).arrival_s, poisson(4).arrival_s)
    assert np.array_equal(poisson(3, rate=1.0).prompt_tokens, poisson(3, rate=9.0).prompt_tokens)


def test_offline_arrives_at_zero_with_fixed_lengths() -> None:
    workload = Workload.from_offline("o", num_requests=5, lengths=FixedLengths(7, 3))
    assert len(workload) == 5
    assert not workload.arrival_s.any()
    assert set(workload.prompt_tokens) == {7}
    assert set(workload.output_tokens) == {3}


def test_trace_round_trip_sorts_and_ignores_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    table = {"arrival_s": [2.0, 0.5], "prompt_tokens": [4, 5], "output_tokens": [6, 7], "ttft_s": [0.1, 0.2]}
    pq.write_table(pa.table(table), path)
    workload = Workload.from_trace(path)
    assert workload.name == "trace"
    assert workload.arrival_s.tolist() == [0.5, 2.0]
    assert workload.prompt_tokens.tolist() == [5, 4]
    assert workload.output_tokens.tolist() == [7, 6]
    workload.to_parquet(tmp_path / "again.parquet")
    again = Workload.from_trace(tmp_path / "again.parquet")
    assert np.array_equal(again.arrival_s, workload.arrival_s)


def test_what_arrived_at_once_is_sent_in_the_order_of_the_trace_and_of_its_client(tmp_path: Path) -> None:
    arrivals = {
        "arrival_s": [1.0, 0.0, 0.0, 0.0],
        "output_tokens": [1] * 4,
        "prompt_tokens": [10, 11, 12, 13],
    }
    pq.write_table(pa.table(arrivals), tmp_path / "offline.parquet")
    assert Workload.from_trace(tmp_path / "offline.parquet").prompt_tokens.tolist() == [11, 12, 13, 10]
    sent = arrivals | {"submitted_s": [0.5, 0.03, 0.01, None]}  # late arrivals stay late; one was never sent
    pq.write_table(pa.table(sent), tmp_path / "replayed.parquet")
    assert Workload.from_trace(tmp_path / "replayed.parquet").prompt_tokens.tolist() == [12, 11, 13, 10]


def test_trace_without_columns_names_them(tmp_path: Path) -> None:
    pq.write_table(pa.table({"arrival_s": [0.0]}), tmp_path / "bad.parquet")
    with pytest.raises(WorkloadError, match="lacks prompt_tokens, output_tokens"):
        Workload.from_trace(tmp_path / "bad.parquet")
    with pytest.raises(WorkloadError, match="cannot read"):
        Workload.from_trace(tmp_path / "absent.parquet")


@pytest.mark.parametrize(
    ("arrival_s", "prompts", "message"),
    [
        ([1.0, 0.5], [1, 1], "ascend"),
        ([-1.0, 0.5], [1, 1], "not negative"),
        ([0.0, float("nan")], [1, 1], "finite"),
        ([0.0, 1.0], [1, 0], "at least 1 token"),
        ([0.0, 1.0], [1], "one same"),
        ([], [], "non-zero length"),
    ],
)
def test_impossible_workloads_are_refused(arrival_s: list[float], prompts: list[int], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        Workload(
            "w",
            np.array(arrival_s, np.float64),
            np.array(prompts, np.int64),
            np.ones(len(arrival_s), np.int64),
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "zipf"}, "use one of sharegpt, lognormal, fixed"),
        ({"kind": "fixed", "tokens": 3}, "use prompt_tokens, output_tokens"),
        ({"kind": "fixed", "prompt_tokens": "many"}, "must be a number"),
        ({"kind": "fixed", "prompt_tokens": 0}, "greater than 0"),
        ({"kind": "sharegpt", "prompt_sigma": -1}, "0 or more"),
    ],
)
def test_lengths_from_config_teaches(config: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        lengths_from_config(config)


def test_rate_and_count_must_be_positive() -> None:
    with pytest.raises(WorkloadError, match="request_rate_per_s"):
        Workload.from_poisson("p", request_rate_per_s=0, num_requests=1, lengths=FixedLengths())
    with pytest.raises(WorkloadError, match="num_requests"):
        Workload.from_offline("o", num_requests=0, lengths=FixedLengths())
