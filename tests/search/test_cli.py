"""The command line: friendly overrides, and refusals in one line with status 2 before Ray is imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from revati import emulate, paths, sweep
from revati.search import cli
from revati.search.build import build_problem, build_workload, one_spec, plain
from revati.search.run import build, check_sweep
from tests.search.problems import TINY

# The table of the default host may not be installed where tests run.
FREE = "host.mode=free"


def composed(name: str, *arguments: str) -> list[DictConfig]:
    cli.schemas.register()
    return [cli.compose_config(name, overrides) for overrides in cli.expand(cli.rewrite(arguments))]


REFUSALS = [
    (
        [],
        "+model= with one of llama13b, llama31_70b, llama31_8b, llama32_1b, llama32_3b, llama7b, mistral_7b, "
        "qwen25_14b, qwen25_32b, qwen25_7b, qwen3_32b, qwen3_4b, qwen3_8b, the path of",
    ),
    (["+model=llama99"], "unknown model 'llama99'; accepted: llama13b"),
    (["+model=llama7b", "gpu=h300"], "unknown gpu 'h300'; accepted: a100, b200, h100, h200, l40s"),
    (["+model=llama7b", "timing.source=x"], "timing.source='x' is unknown; known: kernel_db, aiconfigurator"),
    (["+model=llama7b", "gpu=l40s", "timing.source=kernel_db"], "kernel_db: has h100, h200; on a machine"),
    (["+model=llama7b", "engine=tgi"], "unknown engine 'tgi'; accepted: sglang, vllm"),
    (["+model=llama7b", "search=bayes"], "unknown search 'bayes'; accepted: grid, nsga2, random, tpe"),
    (["+model=llama7b", "objective=x"], "unknown objective 'x'; accepted: batch, goodput, serving"),
    (["+model=llama7b", "workload=x"], "unknown workload 'x'; accepted: fixed, heavy_tail, multi_turn"),
    (
        ["+model=llama7b", "workload.prefixes.group=2"],
        "unknown option 'group' of prefixes; use groups, tokens",
    ),
    (["+model=llama7b", "workload.sessions.turns=0"], "turns and context_tokens_max must be 1 or more"),
    (["+model=llama7b", "knobs.max_num_seq=1"], "unknown vllm knob 'max_num_seq'; accepted: tensor_parallel"),
    (["+model=llama7b", "knobs.max_num_seqs=abc"], "accepted: an integer from 1"),
    (["+model=llama7b", "knobs.tensor_parallel_size=3"], "accepted: 1, 2, 4, 8"),
    (
        ["+model=llama7b", "engine.args.max_seqs=1"],
        "unknown vllm argument 'max_seqs'; accepted: max_num_seqs",
    ),
    (["+model=llama7b", "engine.args.max_num_seqs=1.5"], "accepted: an integer from 1"),
    (["+model=llama7b", "max_num_seqs=1"], "did you mean knobs.max_num_seqs?"),
    (["+model=llama7b", "seeed=1"], "did you mean seed?"),
    (["+model=llama7b", "seed=1.5"], "seed: … accepted: an integer"),
    (["+model=llama7b", "num_gpus=many"], "num_gpus: … accepted: an integer"),
    (["+model=llama7b", "num_gpus=0"], "num_gpus=0: accepted: an integer >= 1"),
    (["+model=llama7b", "gpu.memory_bytes=1"], "gpu.memory_bytes cannot be set here"),
    (["+model=llama7b", "model.hf_config.hidden_size=x"], "'hidden_size' must be a positive integer"),
    (["+model=llama7b", "workload.num_requests=abc"], "workload.num_requests: … accepted: an integer"),
    (["+model=llama7b", "workload.requests=1"], "accepted in workload: name, arrivals, num_requests"),
    (["+model=llama7b", "workload.arrivals=burst"], "accepted: poisson, offline, trace"),
    (["+model=llama7b", "workload.request_rate_per_s=-1"], "greater than 0"),
    (["+model=llama7b", "workload.lengths.kind=x"], "sharegpt, lognormal, fixed"),
    (["+model=llama7b", "workload=trace"], "accepted: a Parquet file"),
    (["+model=llama7b", "workload=trace", "workload.trace=/nope"], "cannot read the trace"),
    (
        ["+model=llama7b", "objective.metrics=[speed,e2e_ms_p99]"],
        "unknown objective metric 'speed'; accepted: ",
    ),
    (["+model=llama7b", "objective.slo.ttft=1"], "unknown SLO metric 'ttft'; accepted: "),
    (["+model=llama7b", "objective.slo.ttft_ms_p99=x"], "objective.slo.ttft_ms_p99: "),
    (["+model=llama7b", "search.algorithm=x"], "accepted: grid, random, tpe, nsga2"),
    (["+model=llama7b", "search.num_trials=0"], "accepted: an integer >= 1"),
    (["+model=llama7b", "search=tpe", "search.num_trials=null"], "accepted by this algorithm"),
    (["+model=llama7b", "search_space=x"], "unknown search space 'x'; accepted: default, routing"),
    (["+model=llama7b", "knobs.replicas=2"], "replicas=2 needs knob routing; accepted: random, round_robin"),
    (
        ["+model=llama7b", "knobs.routing=random"],
        "knob routing needs knob replicas; accepted: an integer >= 2",
    ),
    (
        ["+model=llama7b", "knobs.replicas=2", "knobs.routing=fastest"],
        "routing='fastest': accepted: random, round_robin, cache_aware, power_of_two, consistent_hash, "
        "sticky_least_loaded, sglang_power_of_two, data_parallel",
    ),
    (
        ["+model=llama7b", "knobs.replicas=2", "knobs.routing=random", "deployment=inprocess"],
        "deployment=inprocess has one replica; accepted for more: auto, processes",
    ),
    (["+model=llama7b", "deployment=x"], "unknown deployment 'x'; accepted: auto, inprocess, processes"),
    (["+model=llama7b", "search_space=scheduler"], "accepted by search=grid: a list"),
    (["+model=llama7b", "host=x", "host.mode=table"], "unknown host.name 'x'; accepted: "),
    (["+model=llama7b", "host.mode=x"], "accepted: table, measured, free"),
    (["+model=llama7b", "host.mode=table", "host.name=x"], "unknown host.name 'x'; accepted: "),
    (["+model=llama7b", "timing.require=roofline"], "accepted: null, measured, interpolated"),
    (["+model=llama7b", "resume=/nope"], "accepted: the output folder of a sweep"),
    (["-m", "+model=llama7b,llama99"], "unknown model 'llama99'; accepted: llama13b"),
    (["+model=llama7b,llama13b"], "Ambiguous value"),
    (["+model=llama7b", "knobs.max_num_seqs=[1"], "."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=lambda value: " ".join(value)[:60])
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = [] if any(argument.startswith("host.mode") for argument in arguments) else [FREE]
    monkeypatch.setattr(sys, "argv", ["revati.sweep", *arguments, *host])
    assert cli.main("sweep", lambda config: pytest.fail("ran"), check_sweep) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("revati.sweep: ")
    assert err.count("\n") == 1
    assert all(part in err for part in message.split(" … ")), err


@pytest.mark.parametrize("entry", ["sweep", "emulate"])
def test_bad_input_is_refused_before_ray_is_imported(entry: str) -> None:
    code = (
        f"import sys; from revati import {entry} as entry; sys.argv = ['x', '+model=nope'];"
        "status = entry.main(); print('ray' in sys.modules, status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.split() == ["False", "2"]
    assert run.stderr.startswith(f"revati.{entry}: unknown model 'nope'; accepted: llama13b")


@pytest.mark.parametrize("model", paths.conf_names("model"))
def test_shipped_models_compose(model: str) -> None:
    (config,) = composed("sweep", f"+model={model}", FREE)
    problem = build_problem(config, 8)
    assert problem.model.name == model
    hf_config = config.model.hf_config
    divided = hf_config.hidden_size / hf_config.num_attention_heads
    assert problem.model.head_dim == hf_config.get("head_dim", divided)
    assert config.model.hub_id


@pytest.mark.parametrize("group", ["workload", "objective", "search"])
def test_shipped_options_compose(group: str, tmp_path: Path) -> None:
    for option in paths.conf_names(group):
        more = [f"workload.trace={trace(tmp_path)}"] if option == "trace" else []
        (config,) = composed("sweep", "+model=llama7b", FREE, f"{group}={option}", *more)
        build(config)


def trace(folder: Path) -> Path:
    (config,) = composed("sweep", "+model=llama7b", FREE, "workload.num_requests=5")
    build_workload(config).to_parquet(folder / "trace.parquet")
    return folder / "trace.parquet"


def test_a_trace_can_be_cut(tmp_path: Path) -> None:
    arguments = ["+model=llama7b", "workload=trace", f"workload.trace={trace(tmp_path)}"]
    assert len(build_workload(composed("sweep", *arguments)[0])) == 5
    assert len(build_workload(composed("sweep", *arguments, "workload.num_requests=2")[0])) == 2


def test_the_default_sweep_is_the_promised_one() -> None:
    (config,) = composed("sweep", "+model=llama13b", FREE)
    default = build(config)
    assert default.total is not None
    assert default.total >= 24
    assert len(default.workload) >= 200
    assert default.problem.num_gpus == 8
    assert default.problem.gpu == "h200"


def test_plus_is_optional_and_flags_may_stand_anywhere() -> None:
    assert cli.rewrite(["model=llama7b", "knobs.max_num_seqs=8", "-m"]) == [
        "-m",
        "+model=llama7b",
        "++knobs.max_num_seqs=8",
    ]


CONFIG_JSON: dict[str, Any] = {**TINY, "rope_scaling": None, "id2label": {"0": "A"}}


@pytest.mark.parametrize("name", ["my model (v2)", "llama7b", "plain"])
def test_a_model_may_be_a_config_json(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG_JSON))
    for path in (folder / "config.json", folder):
        (config,) = composed("sweep", f"+model={path}", FREE)
        assert plain(config.model.hf_config) == CONFIG_JSON
        assert config.model.hub_id == str(folder)
        assert build(config).problem.model.hidden_size == 512


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "JSON object"), ("{", "not a JSON file"), ("{}", "needed")]
)
def test_a_bad_config_json_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(cli.ConfigError, match=message):
        composed("sweep", f"+model={tmp_path / 'config.json'}")


def test_multirun_composes_every_job(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON))
    jobs = composed("sweep", "-m", f"+model=llama7b,{tmp_path}", "seed=1,2", FREE)
    assert [(job.model.name == "llama7b", job.seed) for job in jobs] == [
        (True, 1), (True, 2), (False, 1), (False, 2),
    ]  # fmt: skip


def test_emulate_takes_single_values_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = composed("emulate", "+model=llama7b", FREE, "knobs.tensor_parallel_size=2")
    assert one_spec(config).tensor_parallel_size == 2
    monkeypatch.setattr(sys, "argv", ["x", "+model=llama7b", FREE, "knobs.tensor_parallel_size=[1,2]"])
    assert emulate.main() == 2
    assert "accepted: 1, 2, 4, 8" in capsys.readouterr().err


@pytest.mark.parametrize("entry", [sweep, emulate])
def test_entry_points_have_help(
    entry: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    assert entry.main() == 0
    text = capsys.readouterr().out
    for word in ("+model=NAME", "llama13b", "max_num_seqs", "host:", "output_dir", "goodput_req_per_s"):
        assert word in text
