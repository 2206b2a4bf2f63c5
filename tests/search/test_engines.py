"""Several engines in one sweep: their spaces side by side, each with its own proposer and command."""

from __future__ import annotations

import random

import pytest

from revati.deployment.metrics import Slo
from revati.search import cli
from revati.search.errors import ConfigError
from revati.search.knobs import engine_knobs
from revati.search.launch import commands
from revati.search.objective import Objective
from revati.search.problem import Problem
from revati.search.proposers import Outcome, make_proposer
from revati.search.space import load_joint_space, load_space
from revati.spec import HostSpec, ModelShape

ENGINES = ("vllm", "sglang")
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 32000,
}
OBJECTIVE = Objective.parse(["output_throughput_tok_per_s_per_gpu", "tpot_ms_p50"], {}, Slo())


def problem() -> Problem:
    return Problem(
        ModelShape("tiny", TINY), "vllm", {"enforce_eager": True}, "h200", HostSpec("h200_xeon"), 8
    )


def test_a_list_of_engines_reaches_the_configuration() -> None:
    assert cli.rewrite(["engine=[vllm,sglang]"]) == ["engine=vllm", "engines=[vllm,sglang]"]
    assert cli.rewrite(["engine=sglang"]) == ["engine=sglang"]


def test_the_grid_holds_every_engine_s_points() -> None:
    space = load_joint_space(ENGINES, {"tensor_parallel_size": [1, 2], "max_num_seqs": 64})
    points = list(space.grid())
    assert len(points) == space.size
    assert {point["engine"] for point in points} == set(ENGINES)
    assert {point["tensor_parallel_size"] for point in points} == {1, 2}
    for point in points:
        spec = problem().spec(point)
        assert spec.engine == point["engine"]
        assert set(spec.engine_args) <= set(engine_knobs(spec.engine))


def test_an_override_that_no_engine_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_seq"):
        load_joint_space(ENGINES, {"max_num_seq": 1})


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe", "nsga2"])
def test_engines_take_turns_and_points_come_once(algorithm: str) -> None:
    space = load_joint_space(ENGINES, {})
    proposer = make_proposer(algorithm, space, OBJECTIVE, 16, seed=1)
    points = []
    for _ in range(4):
        batch = proposer.propose(4)
        for point in batch:
            proposer.tell(point, Outcome((random.Random(str(point)).random(), 1.0), ()))
        points += batch
    assert len({tuple(sorted(point.items())) for point in points}) == len(points) == 16
    counts = [sum(point["engine"] == engine for point in points) for engine in ENGINES]
    assert counts == [8, 8]


def test_the_default_space_of_sglang_is_its_own() -> None:
    assert set(load_space("default", "sglang", {}).domains) <= {
        "tensor_parallel_size",
        *engine_knobs("sglang"),
    }


def test_sglang_is_launched_by_its_own_names() -> None:
    point = {"engine": "sglang", "tensor_parallel_size": 2, "chunked_prefill_size": 2048}
    spec = problem().spec({**point, "enable_mixed_chunk": True, "disable_radix_cache": False})
    assert commands(spec, "org/tiny") == [
        "python -m sglang.launch_server --model-path org/tiny --tp-size 2 --dtype bfloat16 "
        "--chunked-prefill-size 2048 --enable-mixed-chunk"
    ]
