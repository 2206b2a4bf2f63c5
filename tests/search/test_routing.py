"""Replicas and routing as knobs: which points there are, what runs them, and how they are launched."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from revati.deployment.routers import POLICIES, ROUTINGS
from revati.search import cli
from revati.search.build import one_spec
from revati.search.errors import ConfigError
from revati.search.launch import commands, launch_script
from revati.search.proposers import Outcome, make_proposer
from revati.search.runner import runner_for
from revati.search.space import JointSpace, SearchSpace, load_space, parse_domain
from tests.search.problems import PROBLEM, objective


def space(**knobs: Any) -> SearchSpace:
    return SearchSpace({name: parse_domain("vllm", name, value) for name, value in knobs.items()})


ROUTED = space(routing=["random", "cache_aware", "data_parallel"], replicas=[1, 2, 4], max_num_seqs=[8, 16])


def test_one_replica_is_one_point_whatever_the_routing() -> None:
    points = list(ROUTED.grid())
    assert len(points) == ROUTED.size == 2 * (1 + 2 * 3)
    alone = [point for point in points if point["replicas"] == 1]
    assert [(point["routing"], point["max_num_seqs"]) for point in alone] == [("none", 8), ("none", 16)]
    assert all(point["routing"] != "none" for point in points if point["replicas"] > 1)


def test_sizes_without_a_choice() -> None:
    assert space(routing="random", replicas=[2, 4]).size == 2
    assert space(routing=["random", "cache_aware"], replicas=1).size == 1
    assert space(routing="random", replicas={"low": 1, "high": 4}).size is None
    assert JointSpace.of({"vllm": ROUTED, "sglang": space(max_num_seqs=8)}).replicas == (1, 2, 4)


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe", "nsga2"])
def test_searchers_propose_each_deployment_once(algorithm: str) -> None:
    chosen = objective()
    proposer = make_proposer(algorithm, ROUTED, chosen, 14, seed=1)
    points: list[dict[str, Any]] = []
    while len(points) < 14 and (found := proposer.propose(2)):
        for point in found:
            proposer.tell(point, Outcome((1.0, 2.0), ()))
        points += found
    assert len(points) == len({tuple(sorted(point.items())) for point in points}) == 14
    assert {PROBLEM.spec(point).num_gpus for point in points} == {1, 2, 4}
    resumed = make_proposer(algorithm, ROUTED, chosen, 14, seed=2)
    for point in points:
        resumed.tell(point, Outcome((1.0, 2.0), ()))
    assert resumed.propose(1) == []


def test_draws_are_deployments() -> None:
    rng = random.Random(0)
    specs = [PROBLEM.spec(ROUTED.draw(rng)) for _ in range(50)]
    assert {(spec.replicas == 1, spec.routing == "none") for spec in specs} == {(True, True), (False, False)}


def test_the_shipped_space_holds_every_kind_of_routing() -> None:
    points = list(load_space("routing", "vllm", {}).grid())
    assert {point["routing"] for point in points} <= {"none", *ROUTINGS}
    assert {"random", "round_robin", "cache_aware", "power_of_two", "data_parallel"} <= {
        point["routing"] for point in points
    }


def test_replicas_count_against_the_budget() -> None:
    spec = PROBLEM.spec({"replicas": 4, "routing": "random", "tensor_parallel_size": 2})
    assert spec.num_gpus == 8
    assert PROBLEM.over_budget(spec) == "needs 8 GPUs, the budget is num_gpus=4"


@pytest.mark.parametrize(
    ("deployment", "engines", "replicas", "stages", "module"),
    [
        ("auto", ["vllm"], (1,), (1, 2), "runner"),
        ("auto", ["vllm"], (2, 4), (1,), "processes"),
        ("auto", ["vllm"], (1, 4), (1,), "mixed"),
        ("auto", ["sglang"], (1,), (1,), "runner"),
        ("auto", ["sglang"], (1,), (2, 4), "processes"),
        ("auto", ["sglang"], (1,), (1, 2), "mixed"),
        ("auto", ["vllm", "sglang"], (1,), (2,), "mixed"),
        ("processes", ["vllm"], (1, 4), (1,), "processes"),
        ("inprocess", ["vllm"], (1,), (1,), "runner"),
    ],
)
def test_what_runs_trials_follows_from_engines_replicas_and_stages(
    deployment: str, engines: list[str], replicas: tuple[int, ...], stages: tuple[int, ...], module: str
) -> None:
    assert runner_for(deployment, engines, replicas, stages) == f"revati.deployment.{module}"


def test_several_replicas_do_not_fit_in_one_process() -> None:
    with pytest.raises(ConfigError, match="accepted for more: auto, processes"):
        runner_for("inprocess", ["vllm"], (1, 2), (1,))


def test_one_deployment_with_replicas() -> None:
    cli.schemas.register()
    arguments = ["+model=llama7b", "host.mode=free", "knobs.replicas=2", "knobs.routing=cache_aware"]
    config: DictConfig = cli.compose_config("emulate", cli.rewrite(arguments))
    spec = one_spec(config)
    assert (spec.replicas, spec.routing, spec.num_gpus) == (2, "cache_aware", 2)


def test_launch_commands_of_replicas_and_their_router() -> None:
    spec = PROBLEM.spec({"replicas": 2, "routing": "cache_aware", "tensor_parallel_size": 2})
    serve = "vllm serve org/tiny --tensor-parallel-size 2 --dtype bfloat16 --enforce-eager"
    assert commands(spec, "org/tiny") == [
        f"CUDA_VISIBLE_DEVICES=0,1 {serve} --port 8001",
        f"CUDA_VISIBLE_DEVICES=2,3 {serve} --port 8002",
        "python -m sglang_router.launch_router --policy cache_aware "
        "--worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 --host 0.0.0.0 --port 8000",
    ]
    assert commands(PROBLEM.spec({"replicas": 4, "routing": "data_parallel"}), "x") == [
        "vllm serve x --tensor-parallel-size 1 --dtype bfloat16 --enforce-eager --data-parallel-size 4"
    ]


def test_vllm_router_has_the_policies_that_the_other_lacks() -> None:
    spec = PROBLEM.spec({"replicas": 2, "routing": "consistent_hash"})
    assert commands(spec, "x")[-1].startswith("python -m vllm_router.launch_router --policy consistent_hash ")
    assert "# The router: pip install vllm-router==0.1.17\n" in launch_script(spec, "x", {})
    assert {POLICIES[name].router.package for name in ("random", "cache_aware")} == {"sglang-router"}


def test_the_launch_script_starts_all_and_ends_all(tmp_path: Path) -> None:
    spec = PROBLEM.spec({"replicas": 2, "routing": "random"})
    script = tmp_path / "launch.sh"
    script.write_text(launch_script(spec, "some model", {"NAME": "value"}))
    calls, ended = tmp_path / "calls", tmp_path / "ended"
    say = f'echo "$(basename $0) $NAME $CUDA_VISIBLE_DEVICES $*" >> "{calls}"'
    stay = f"trap 'echo ended >> \"{ended}\"; exit' TERM\nwhile :; do sleep 0.05; done"
    until_both = f'while [ "$(wc -l < "{calls}")" -lt 3 ]; do sleep 0.05; done; sleep 0.2'
    for program, act in (("vllm", stay), ("python", until_both)):
        fake = tmp_path / "bin" / program
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!/bin/sh\n{say}\n{act}\n")
        fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    subprocess.run(["sh", script, "--swap-space", "0"], env=environment, check=True, timeout=30)
    options = "--tensor-parallel-size 1 --dtype bfloat16 --enforce-eager"
    assert sorted(calls.read_text().splitlines()) == [
        "python value  -m sglang_router.launch_router --policy random --worker-urls "
        "http://127.0.0.1:8001 http://127.0.0.1:8002 --host 0.0.0.0 --port 8000",
        f"vllm value 0 serve some model {options} --port 8001 --swap-space 0",
        f"vllm value 1 serve some model {options} --port 8002 --swap-space 0",
    ]
    deadline = time.monotonic() + 10
    while not (ended.exists() and len(ended.read_text().split()) == 2):
        assert time.monotonic() < deadline, "servers go on without their router"
        time.sleep(0.05)
