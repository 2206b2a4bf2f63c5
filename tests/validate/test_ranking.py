"""Ranking of configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from revati.validate.metrics import COLUMNS
from revati.validate.predictions import Prediction
from revati.validate.ranking import groups, rank, rankings, rankings_by_repeats
from revati.validate.runs import Case, read_cases

from .conftest import AddRun

TTFT = next(column for column in COLUMNS if column.metric == "ttft_ms_p50")
THROUGHPUT = next(column for column in COLUMNS if column.metric == "output_throughput_tok_per_s")


@pytest.fixture
def cases(measured: Path, add_run: AddRun) -> list[Case]:
    add_run("tp1", 3.0)
    add_run("tp2", 2.0, num_gpus=2)
    add_run("tp4", 1.0, num_gpus=4)
    add_run("other", 1.0, model="llama-13b")
    return read_cases([measured])


def predicted(**ttft_ms: float) -> dict[str, Prediction]:
    return {name: Prediction({"ttft_ms_p50": value}) for name, value in ttft_ms.items()}


def test_a_group_is_one_model_under_the_same_requests(cases: list[Case]) -> None:
    assert [[case.name for case in group] for group in groups(cases)] == [["tp1", "tp2", "tp4"]]


def test_what_was_measured_again_is_no_other_configuration(
    measured: Path, add_run: AddRun, cases: list[Case]
) -> None:
    add_run("again_tp1", 2.5, recorded_at="2026-11-27")
    add_run("again_tp2", 1.5, num_gpus=2, recorded_at="2026-11-27")
    names = [[case.name for case in group] for group in groups(read_cases([measured]))]
    assert names == [["tp1", "tp2", "tp4"], ["again_tp1", "again_tp2"]]


def test_the_right_order_has_no_regret(cases: list[Case]) -> None:
    ranking = rank(groups(cases)[0], predicted(tp1=30, tp2=25, tp4=20), TTFT)
    assert ranking
    assert (ranking.tau, ranking.decided, ranking.concordant) == (1.0, 3, 3)
    assert (ranking.picked, ranking.regret_pct) == ("tp4", 0.0)


def test_a_wrong_pick_costs_what_was_measured(cases: list[Case]) -> None:
    ranking = rank(groups(cases)[0], predicted(tp1=30, tp2=15, tp4=20), TTFT)
    assert ranking
    assert ranking.tau == pytest.approx(1 / 3)
    assert (ranking.picked, ranking.best) == ("tp2", "tp4")
    assert ranking.regret_pct == pytest.approx(100)


def test_pairs_within_the_noise_are_not_decided(measured: Path, add_run: AddRun) -> None:
    add_run("a", 1.0)
    add_run("a_rep2", 1.2)
    add_run("b", 1.15, num_gpus=2)
    ranking = rank(groups(read_cases([measured]))[0], predicted(a=1, b=2), TTFT)
    assert ranking
    assert (ranking.pairs, ranking.decided) == (1, 0)


def test_throughput_counts_by_gpu(cases: list[Case]) -> None:
    group = groups(cases)[0]
    given = {case.name: Prediction({THROUGHPUT.metric: case.measured(THROUGHPUT.metric)}) for case in group}
    ranking = rank(group, given, THROUGHPUT)
    assert ranking
    assert ranking.best == ranking.picked
    per_gpu = {case.name: case.measured(THROUGHPUT.metric) / case.num_gpus for case in group}
    assert ranking.best == max(per_gpu, key=per_gpu.__getitem__)


def test_what_is_not_predicted_is_not_ranked(cases: list[Case]) -> None:
    assert rankings(groups(cases), predicted(tp1=1)) == []


def test_a_model_by_another_name_is_no_other_configuration(measured: Path, add_run: AddRun) -> None:
    add_run("a", model="llama-13b")
    add_run("b", model="llama13b")
    assert groups(read_cases([measured])) == []


def test_a_repeat_is_judged_by_the_others(measured: Path, add_run: AddRun) -> None:
    for repeat, (tp1, tp2) in enumerate(((3.0, 2.0), (3.1, 2.1), (2.9, 3.5)), start=1):
        add_run(f"tp1_rep{repeat}", tp1)
        add_run(f"tp2_rep{repeat}", tp2, num_gpus=2)
    turns = [
        next(ranking for group in turn for ranking in group if ranking.metric == TTFT.metric)
        for turn in rankings_by_repeats(groups(read_cases([measured])))
    ]
    # Of the last repeat tp1 is faster, of the others' medians tp2: 3.05 against 2.05.
    assert [ranking.tau for ranking in turns] == [1.0, 1.0, -1.0]
    assert turns[-1].regret_pct == pytest.approx(100 * (3.05 / 2.05 - 1))
