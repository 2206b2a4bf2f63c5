"""Searchers: distinct points, seeds, what they learn of bad ones, resumption."""

import math
from typing import Any

import pytest

from revati.deployment.metrics import Slo
from revati.search.errors import ConfigError
from revati.search.objective import Objective
from revati.search.proposers import ALGORITHMS, Outcome, Proposer, make_proposer
from revati.search.space import Choice, Point, Range, SearchSpace, point_key

SPACE = SearchSpace(
    {"tensor_parallel_size": Choice((1, 2, 4, 8)), "max_num_seqs": Choice((1, 2, 3, 4, 5, 6, 7, 8))}
)
OBJECTIVE = Objective.parse(
    ["output_throughput_tok_per_s_per_gpu", "ttft_ms_p90"], {"ttft_ms_p90": 10.0}, Slo()
)
SAMPLERS = ["tpe", "nsga2"]


def proposer(algorithm: str, num_trials: int = 32, seed: int = 0, space: SearchSpace = SPACE) -> Proposer:
    return make_proposer(algorithm, space, OBJECTIVE, num_trials, seed=seed, startup=5, population=4)


def outcome(point: Point) -> Outcome:
    """Best at high max_num_seqs; TP 8 does not fit."""
    if point["tensor_parallel_size"] == 8:
        return Outcome(None, ())
    ttft = 3.0 * point["tensor_parallel_size"]
    return Outcome((float(point["max_num_seqs"]), ttft), (ttft / 10 - 1,))


def search(chosen: Proposer, count: int, batch: int = 4) -> list[Point]:
    points: list[Point] = []
    while len(points) < count:
        new = chosen.propose(min(batch, count - len(points)))
        if not new:
            break
        for point in new:
            chosen.tell(point, outcome(point))
        points += new
    return points


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_points_are_distinct_and_exhaust_a_finite_space(algorithm: str) -> None:
    points = search(proposer(algorithm, 100), 100)
    assert len(points) == 32
    assert len({point_key(point) for point in points}) == 32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_seed_one_sequence(algorithm: str) -> None:
    assert search(proposer(algorithm, 12), 12) == search(proposer(algorithm, 12), 12)


@pytest.mark.parametrize("algorithm", ["random", *SAMPLERS])
def test_another_seed_another_sequence(algorithm: str) -> None:
    assert search(proposer(algorithm, 12), 12) != search(proposer(algorithm, 12, seed=1), 12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_points_of_an_earlier_run_are_not_proposed_again(algorithm: str) -> None:
    before = search(proposer(algorithm, 20), 10)
    resumed = proposer(algorithm, 20, seed=0)
    for point in before:
        resumed.tell(point, outcome(point))
    after = search(resumed, 10)
    assert len(after) == 10
    assert not {point_key(point) for point in before} & {point_key(point) for point in after}


@pytest.mark.parametrize("algorithm", SAMPLERS)
def test_samplers_turn_away_from_what_does_not_run(algorithm: str) -> None:
    big = SearchSpace({"tensor_parallel_size": Choice((1, 2, 4, 8)), "max_num_seqs": Range(1, 4096)})
    points = search(proposer(algorithm, 80, space=big), 80)
    share = [
        sum(p["tensor_parallel_size"] == 8 for p in part) / len(part) for part in (points[:16], points[40:])
    ]
    assert share[1] < 0.15
    assert share[1] < share[0] or share[0] == 0


@pytest.mark.parametrize("algorithm", SAMPLERS)
@pytest.mark.parametrize(
    "strange",
    [
        Outcome(None, ()),
        Outcome((math.nan, 1.0), (0.0,)),
        Outcome((math.inf, 1.0), (0.0,)),
        Outcome((1.0, math.inf), (math.inf,)),
        Outcome((-math.inf, math.inf), (math.inf,)),
    ],
)
def test_samplers_survive_strange_outcomes(algorithm: str, strange: Outcome) -> None:
    chosen = proposer(algorithm)
    for _ in range(5):
        for point in chosen.propose(4):
            chosen.tell(point, strange)
    assert chosen.propose(1)


def test_samplers_take_every_kind_of_domain() -> None:
    space = SearchSpace(
        {
            "scheduling_policy": Choice(("fcfs", "priority")),
            "enforce_eager": Choice((True, False)),
            "max_num_seqs": Range(16, 1024, log=True),
            "max_num_batched_tokens": Range(1024, 16384, step=1024),
            "gpu_memory_utilization": Range(0.5, 0.9, integer=False),
        }
    )
    for algorithm in ("random", *SAMPLERS):
        for point in proposer(algorithm, 12, space=space).propose(12):
            kinds: dict[str, Any] = {name: type(value) for name, value in point.items()}
            assert list(kinds.values()) == [str, bool, int, int, float]
            assert point["max_num_batched_tokens"] % 1024 == 0


def test_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(ConfigError, match="grid, random, tpe, nsga2"):
        proposer("bayes")
