"""Objectives: parsing, the SLO, the front among what meets it, the recommendation."""

import math
from typing import Any

import pytest

from revati.deployment.metrics import Slo
from revati.search.errors import ConfigError
from revati.search.objective import Objective

THROUGHPUT, TTFT = "output_throughput_tok_per_s_per_gpu", "ttft_ms_p90"


def objective(**slo: float) -> Objective:
    return Objective.parse([THROUGHPUT, TTFT], slo, Slo())


def row(throughput: float | None, ttft: float | None) -> dict[str, Any]:
    return {THROUGHPUT: throughput, TTFT: ttft}


def test_directions_follow_the_metric_unless_given() -> None:
    assert objective().directions == ("max", "min")
    assert Objective.parse(["e2e_ms_p99:max", THROUGHPUT], {}, Slo()).directions == ("max", "max")


@pytest.mark.parametrize(
    ("metrics", "slo", "names"),
    [
        ([THROUGHPUT], {}, "two or three"),
        ([THROUGHPUT] * 2, {}, "different"),
        (["speed", TTFT], {}, "goodput_req_per_s"),
        ([f"{TTFT}:down", THROUGHPUT], {}, "max, min"),
        ([THROUGHPUT, TTFT], {"ttft_p90": 1.0}, "ttft_ms_p90"),
        ([THROUGHPUT, TTFT], {"ttft_ms_p90": math.nan}, "finite"),
    ],
)
def test_bad_objectives_name_what_is_accepted(metrics: list[str], slo: dict[str, float], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        Objective.parse(metrics, slo, Slo())


def test_slo_bounds_latencies_from_above_and_rates_from_below() -> None:
    bounded = objective(ttft_ms_p90=100.0, output_throughput_tok_per_s_per_gpu=50.0)
    assert bounded.meets_slo(row(50.0, 100.0))
    assert not bounded.meets_slo(row(49.0, 100.0))
    assert not bounded.meets_slo(row(50.0, 101.0))
    assert bounded.violations(row(25.0, 150.0)) == {
        "ttft_ms_p90": 0.5,
        "output_throughput_tok_per_s_per_gpu": 0.5,
    }


@pytest.mark.parametrize("missing", [None, math.nan])
def test_an_unknown_metric_breaks_its_bound(missing: float | None) -> None:
    assert objective(ttft_ms_p90=100.0).violations(row(1.0, missing)) == {"ttft_ms_p90": math.inf}


def test_recommendation_is_best_by_the_primary_among_what_meets_the_slo() -> None:
    rows = [row(300, 500), row(200, 90), row(100, 50), row(90, 60)]
    bounded = objective(ttft_ms_p90=100.0)
    assert bounded.front(rows) == [1, 2]
    assert bounded.best(rows) == 1
    assert objective().best(rows) == 0


def test_ties_on_the_primary_go_to_the_next_objective() -> None:
    # Equal primaries can be on one front only with a third objective.
    three = Objective.parse([THROUGHPUT, TTFT, "tpot_ms_p90"], {}, Slo())
    rows = [{**row(10, 9), "tpot_ms_p90": 1.0}, {**row(10, 5), "tpot_ms_p90": 2.0}]
    assert three.front(rows) == [0, 1]
    assert three.best(rows) == 1


def test_nothing_is_recommended_when_nothing_meets_the_slo() -> None:
    rows = [row(300, 500), row(200, 400), row(100, 450)]
    assert objective(ttft_ms_p90=100.0).front(rows) == [0, 1]
    assert objective(ttft_ms_p90=100.0).best(rows) is None
    assert objective().best([]) is None


def test_a_metric_that_is_not_a_number_is_never_recommended() -> None:
    rows = [row(math.nan, 1.0), row(1.0, 2.0)]
    assert objective().best(rows) == 1
