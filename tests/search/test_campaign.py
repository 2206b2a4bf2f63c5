"""The course of a sweep: counts, budget, adjacency, failures, resumption."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from revati.search.campaign import Campaign
from revati.search.ledger import Ledger
from revati.search.proposers import make_proposer
from revati.search.space import Choice, SearchSpace
from revati.search.trial import TrialOutput
from tests.search.problems import PROBLEM, objective, ok

SPACE = SearchSpace({"tensor_parallel_size": Choice((1, 2, 4)), "max_num_seqs": Choice((8, 16))})


def campaign(
    ledger: Ledger,
    algorithm: str = "grid",
    num_trials: int | None = None,
    space: SearchSpace = SPACE,
    **more: Any,
) -> Campaign:
    proposer = make_proposer(algorithm, space, objective(), num_trials or 0, seed=0)
    return Campaign(PROBLEM, objective(), proposer, ledger, num_trials=num_trials, **more)


def run(course: Campaign, at_most: int = 1000) -> list[dict[str, Any]]:
    points = []
    while at_most and (trial := course.next()) is not None:
        points.append(trial.point)
        course.finish(trial.trial_id, ok(float(trial.point.get("max_num_seqs", 1))))
        at_most -= 1
    return points


def test_a_grid_is_run_once_and_in_the_order_of_its_engines(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        course = campaign(ledger)
        points = run(course)
        assert course.finished
        assert [row["trial_id"] for row in ledger.rows] == [f"{index:04d}" for index in range(6)]
    assert [point["tensor_parallel_size"] for point in points] == [1, 1, 2, 2, 4, 4]


def test_each_engine_is_announced_once(tmp_path: Path) -> None:
    sizes: list[int] = []
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        run(campaign(ledger, on_engine=lambda spec: sizes.append(spec.tensor_parallel_size)))
    assert sizes == [1, 2, 4]


def test_random_points_are_run_engine_by_engine(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        sizes = [p["tensor_parallel_size"] for p in run(campaign(ledger, "random", 6, batch=100))]
    assert sum(a != b for a, b in itertools.pairwise(sizes)) == 2


def test_a_configuration_beyond_the_gpu_budget_is_an_infeasible_row(tmp_path: Path) -> None:
    space = SearchSpace({"tensor_parallel_size": Choice((4, 8))})
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert run(campaign(ledger, space=space)) == [{"tensor_parallel_size": 4}]
        row = next(row for row in ledger.rows if row["tensor_parallel_size"] == 8)
    assert (row["status"], row["num_gpus"]) == ("infeasible", 8)
    assert row["reason"] == "needs 8 GPUs, the budget is num_gpus=4"
    assert row["slo_met"] is False


def test_a_budget_that_nothing_fits_ends_the_sweep(tmp_path: Path) -> None:
    space = SearchSpace({"tensor_parallel_size": Choice((8,))})
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        course = campaign(ledger, space=space)
        assert course.next() is None
        assert course.finished


def test_finished_waits_for_what_is_running(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        course = campaign(ledger, num_trials=1)
        trial = course.next()
        assert trial is not None
        assert course.next() is None
        assert not course.finished
        course.finish(trial.trial_id, TrialOutput("failed", "died"))
        assert course.finished


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe", "nsga2"])
def test_an_interrupted_sweep_goes_on_to_the_asked_number(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        before = campaign(ledger, algorithm, 5)
        run(before, at_most=2)
        assert before.next() is not None  # was running when the sweep was interrupted
    with Ledger(path) as ledger:
        run(campaign(ledger, algorithm, 5))
        assert len(ledger.rows) == 5
        assert len({(p["tensor_parallel_size"], p["max_num_seqs"]) for p in ledger.points}) == 5
        assert len({row["trial_id"] for row in ledger.rows}) == 5
    with Ledger(path) as ledger:
        assert not campaign(ledger, algorithm, 5).has_work()


def test_failed_trials_stay_in_the_ledger_with_their_reason(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        course = campaign(ledger, "tpe", 6)
        while (trial := course.next()) is not None:
            course.finish(trial.trial_id, TrialOutput("failed", "engine core exploded"))
        assert [row["status"] for row in ledger.rows] == ["failed"] * 6
        assert {row["reason"] for row in ledger.rows} == {"engine core exploded"}
        assert len({(p["tensor_parallel_size"], p["max_num_seqs"]) for p in ledger.points}) == 6


def test_a_row_has_the_settings_and_what_came_of_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        run(campaign(ledger, num_trials=1, on_finish=rows.append))
    assert rows[0] | {"max_num_seqs": 8, "enforce_eager": True, "engine": "vllm", "gpu": "h200"} == rows[0]
    assert rows[0] | {"kv_cache_blocks": 8449, "wall_s": 1.5, "gpu_time_share_measured": 1.0} == rows[0]
    assert rows[0]["slo_met"] is True
