"""Measuring real runs, as far as no GPU is needed: cases, engines on GPUs, tables."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.compact import write_compact
from revati.deployment.metrics import summarize
from revati.deployment.prompts import Turns
from revati.engines.sglang import step_log as sglang_log
from revati.engines.vllm.step_log import COUNT_COLUMNS, TIME_COLUMNS
from revati.profile.host_client import Client, Outcome, VllmClient, now, requests_table
from revati.profile.host_load import Request, requests_of
from revati.profile.truth import __main__ as command
from revati.profile.truth.cases import CaseError, Cases, EngineRuns, Load
from revati.profile.truth.pack import pack
from revati.profile.truth.run import from_start, longest_pause, write_description
from revati.validate.runs import read_cases
from revati.workload import Workload
from revati.workload.sharing import NONE, Sharing

CASES = Path(__file__).parents[2] / "validation" / "cases"
SPIKE = Load("spike", "spike", {"kind": "sharegpt"}, request_rate_per_s=10, seconds=20, spike_requests=150)


@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_cases_can_be_read(path: Path) -> None:
    cases = Cases.read(path)
    names = [
        engine.run_name(workload, repeat)
        for engine in cases.engines.values()
        for workload in engine.workloads
        for repeat in range(engine.repeats)
    ]
    assert len(set(names)) == len(names)
    assert all(engine.repeats >= 3 for engine in cases.engines.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gpt5"}, "model=gpt5; accepted: .*llama13b"),
        ({"gpus": [0]}, "1 gpus for 2 × 1 ranks"),
        ({"workloads": ["w", "x"]}, "workloads x; accepted: w"),
        ({"speed": 1}, "unknown speed; accepted: .*until_s"),
    ],
)
def test_wrong_engines_teach(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    engine = {
        "model": "llama7b",
        "gpus": [0, 1],
        "engine_args": {"tensor_parallel_size": 2},
        "workloads": ["w"],
    }
    load = {"arrivals": "offline", "lengths": {"kind": "fixed"}, "num_requests": 2}
    content = {"gpu": "h200", "engines": {"e": engine | change}, "workloads": {"w": load}}
    (tmp_path / "cases.yaml").write_text(json.dumps(content))
    with pytest.raises(CaseError, match=message):
        Cases.read(tmp_path / "cases.yaml")


def test_wrong_workloads_teach() -> None:
    with pytest.raises(CaseError, match="arrivals=burst; accepted: poisson, spike, offline"):
        Load("w", "burst", {"kind": "fixed"})
    with pytest.raises(CaseError, match="spike arrivals need seconds, spike_requests > 0"):
        Load("w", "spike", {"kind": "fixed"}, request_rate_per_s=1)
    with pytest.raises(CaseError, match="sessions need poisson arrivals"):
        Load("w", "offline", {"kind": "fixed"}, num_requests=2, sessions={"turns": 2})


def test_a_spike_arrives_at_once_in_the_middle() -> None:
    workload = SPIKE.requests()
    assert len(workload) == 200 + 150
    assert (workload.arrival_s == 10.0).sum() == 150
    assert (np.diff(workload.arrival_s) >= 0).all()
    again = SPIKE.requests()
    assert again.prompt_tokens.tolist() == workload.prompt_tokens.tolist()


PREFIXES = {"groups": 4, "tokens": 50, "skew": 0.0}


def test_prompts_begin_with_the_prefix_of_their_group() -> None:
    load = Load("w", "offline", {"kind": "sharegpt"}, num_requests=40, prefixes=PREFIXES)
    workload = load.requests()
    assert workload.sharing is not None
    prompts = [request.prompt for request in requests_of(workload, 1000)]
    assert [len(prompt or ()) for prompt in prompts] == workload.prompt_tokens.tolist()
    beginnings = {
        (int(g), tuple((p or [])[:50])) for g, p in zip(workload.sharing.prefix_group, prompts, strict=True)
    }
    assert len(beginnings) == 4 == len({tokens for _, tokens in beginnings})
    assert load.description()["prefixes"] == PREFIXES


def test_what_prompts_have_in_common_is_replayed(tmp_path: Path) -> None:
    sharing = Sharing(np.array([0, 0]), np.array([5, 5]), np.full(2, NONE), np.zeros(2))
    write_compact(table_of([outcome(100.0, [100.5]), outcome(101.0, [101.5])], 99.0, sharing), tmp_path / "r")
    again = Workload.from_trace(tmp_path / "r").sharing
    assert again is not None
    assert again.prefix_tokens.tolist() == [5, 5]


def engines(**gpus: tuple[int, ...]) -> Cases:
    def engine(name: str, ids: tuple[int, ...]) -> EngineRuns:
        return EngineRuns(name, "llama7b", ids, (), {"tensor_parallel_size": len(ids)})

    return Cases("h200", {name: engine(name, ids) for name, ids in gpus.items()}, {})


def run_script(cases: Cases, script: str, out: Path, seconds: float, **limits: float) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LEAST_USEFUL_S": 0.0, "POLL_S": 0.01, **limits}.items():
            patch.setattr(command, name, value)
        return command.run(cases, [sys.executable, "-c", script], out, now() + seconds)


MEETING = """
import os, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[3])
print(name, os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic(), flush=True)
other = out / {"a": "b.log", "b": "a.log"}.get(name, "a.log")
while not (other.exists() and other.read_text()):  # a and b wait for each other
    time.sleep(0.01)
print(time.monotonic())
sys.exit(3 if name == "b" else 0)
"""


def test_engines_share_a_machine_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    script = f"import sys; sys.argv.append({str(tmp_path)!r}); exec({MEETING!r})"
    ends = run_script(engines(a=(0,), b=(1,), wide=(0, 1), late=(1,)), script, tmp_path, 60)
    assert ends == {"a": "done", "b": "failed with exit status 3", "wide": "done", "late": "done"}
    spans = {}
    for name in ends:
        _, gpus, begin, end = (tmp_path / f"{name}.log").read_text().split()
        spans[name] = gpus, float(begin), float(end)
    assert spans["wide"][0] == "0,1"
    assert spans["wide"][1] > max(spans["a"][2], spans["b"][2]), "once its GPUs are free"
    assert spans["late"][1] > spans["wide"][2], "no overtaking"


def test_the_deadline_ends_engines_and_starts_no_more(tmp_path: Path) -> None:
    ends = run_script(engines(a=(0,), b=(0,)), "import time; time.sleep(60)", tmp_path, 0.5, GRACE_S=0.0)
    assert ends["a"].startswith("failed")
    script = "raise SystemExit(0)"
    assert run_script(engines(a=(0,)), script, tmp_path, 5.0, LEAST_USEFUL_S=10.0) == {
        "a": "not started: no time left"
    }


def outcome(arrival_s: float, times_s: list[float]) -> Outcome:
    return Outcome("q", "s", arrival_s, arrival_s + 0.001, 7, len(times_s), times_s, 1.0, 2.0, 3.0, 4.0)


def table_of(outcomes: list[Outcome], start_s: float, sharing: Sharing | None = None) -> pa.Table:
    columns = zip(*((o.arrival_s - start_s, o.prompt_tokens, o.output_tokens) for o in outcomes), strict=True)
    return requests_table(outcomes, start_s, Workload("w", *map(np.array, columns), sharing))


def test_requests_are_told_from_their_scheduled_arrival() -> None:
    table = table_of([outcome(100.0, [100.5, 100.7, 100.9]), outcome(101.0, [101.25])], start_s=99.0)
    first, second = table.to_pylist()
    assert first["arrival_s"] == pytest.approx(1.0)
    assert (first["ttft_s"], first["e2e_s"], first["tpot_s"]) == pytest.approx((0.5, 0.9, 0.2))
    assert first["token_times_us"] == [500_000, 700_000, 900_000]
    assert first["scheduled_s"] == pytest.approx(2.0 - 99.0)
    assert second["tpot_s"] == 0
    assert summarize(table)["output_throughput_tok_per_s"] == pytest.approx(4 / 2.25)


def test_compact_tables_lose_nothing(tmp_path: Path) -> None:
    table = table_of([outcome(100.0, [100.5, 100.7])], 99.0).append_column("name", pa.array(["x"]))
    write_compact(table, tmp_path / "requests.parquet")
    assert pq.read_table(tmp_path / "requests.parquet").equals(table)


def test_steps_count_from_the_runs_start() -> None:
    columns = {name: [10.0, 12.0] for name in TIME_COLUMNS} | {name: [1, 2] for name in COUNT_COLUMNS}
    steps = from_start(pa.table(columns), 11.0)
    assert steps["step"].to_pylist() == [2]
    assert steps["schedule_begin_s"].to_pylist() == [1.0]


def test_a_blocked_event_loop_is_seen() -> None:
    import time

    async def blocked() -> float:
        heart = asyncio.create_task(longest_pause())
        await asyncio.sleep(0.05)
        time.sleep(0.2)
        await asyncio.sleep(0)
        heart.cancel()
        return await heart

    assert 0.15 < asyncio.run(blocked()) < 1.0


def test_descriptions_have_what_validation_reads(tmp_path: Path) -> None:
    write_compact(table_of([outcome(100.0, [100.5, 100.7])], 100.0), tmp_path / "requests.parquet")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "machine.json").write_text('{"client_longest_pause_s": 0.5}')
    facts = {
        "engine": "vllm",
        "engine_version": "0",
        "engine_start_s": 1.0,
        "resolved": {"num_gpu_blocks": 10, "block_size": 16},
        "environment": {},
        **dict.fromkeys(("torch", "cuda", "python", "cpu", "cpus", "recorded_at", "gpu"), ""),
    }
    engine = EngineRuns("e", "llama7b", (2, 3), ("spike",), {"tensor_parallel_size": 2})
    write_description(engine, SPIKE, "h200", facts, tmp_path)
    description = json.loads((tmp_path / "run.json").read_text())
    assert description["frontend_stall"] is True
    assert (description["num_gpus"], description["tensor_parallel_size"]) == (2, 2)
    assert description["resolved"]["kv_cache_size_tokens"] == 160
    assert description["measured"]["ttft_ms_p50"] == pytest.approx(500)
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_the_client_keeps_the_engines_statistics() -> None:
    class Metrics:
        queued_ts, scheduled_ts, first_token_ts, last_token_ts = 1.0, 2.0, 3.0, 4.0

    class Output:
        def __init__(self, tokens: int) -> None:
            self.outputs = [type("Completion", (), {"token_ids": [5] * tokens})()]
            self.metrics = Metrics()
            self.num_cached_tokens = 32

    class Engine:
        async def generate(self, prompt: Any, params: Any, name: str) -> Any:
            yield Output(1)
            yield Output(2)

    pytest.importorskip("vllm")
    (seen,) = asyncio.run(VllmClient(Engine(), 1000).segment("s", [Request(0.0, 4, 3)]))
    assert len(seen.token_times_s) == 3
    assert (seen.queued_s, seen.engine_last_token_s) == (1.0, 4.0)


def test_turns_follow_answers_with_what_was_really_said(tmp_path: Path) -> None:
    class Silent(Client):
        """Takes the longer to answer the more it is told."""

        def __init__(self) -> None:
            super().__init__(1000)
            self.prompts: dict[str, list[int]] = {}

        async def follow(self, prompt: list[int], outcome: Outcome) -> list[int]:
            self.prompts[outcome.request_id] = list(prompt)
            await asyncio.sleep(1e-4 * len(prompt))
            outcome.token_times_s += [now()] * outcome.output_tokens
            return [1] * outcome.output_tokens

    load = Load(
        "chat", "poisson", {"kind": "fixed", "prompt_tokens": 10, "output_tokens": 5},
        request_rate_per_s=100, seconds=0.2, seed=3, sessions={"turns": 4, "think_time_s": 0.02},
    )  # fmt: skip
    workload, client = load.requests(), Silent()
    requests = requests_of(workload, 1000)
    first, second = (asyncio.run(client.segment("s", requests, Turns(workload))) for _ in range(2))
    assert [outcome.prompt_tokens for outcome in first] == workload.prompt_tokens.tolist()
    assert workload.sharing is not None
    later = 0
    for index, turn in enumerate(workload.sharing.next_turn().tolist()):
        if turn == NONE:
            continue
        said = client.prompts[first[index].request_id] + [1] * 5
        assert client.prompts[first[turn].request_id][: len(said)] == said
        due_s = first[index].token_times_s[-1] + workload.sharing.think_s[turn]
        assert first[turn].arrival_s == pytest.approx(due_s, abs=1e-6)
        assert first[turn].submitted_s >= due_s
        later += 1
    assert later == 15
    for name, outcomes in (("chat", first), ("chat_rep2", second)):
        (folder := tmp_path / name).mkdir()
        start_s = outcomes[0].arrival_s - requests[0].arrival_s
        write_compact(requests_table(outcomes, start_s, workload), folder / "requests.parquet")
        description = {"num_gpus": 1, "resolved": {"num_gpu_blocks": 1}}
        (folder / "run.json").write_text(json.dumps(description))
    (case,) = read_cases([tmp_path])  # the same requests, though later turns came at other times
    once, again = (run.workload.arrival_s for run in case.runs)
    assert (once != again).any()


def test_packed_runs_keep_bulky_tables_once(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "packed"
    requests = table_of([outcome(100.0, [100.5, 100.7])], 99.0)
    steps = pa.table({name: [1.0] for name in TIME_COLUMNS} | {name: [1] for name in COUNT_COLUMNS})
    for name in ("a", "a_rep2", "a_rep10"):
        write_compact(requests, source / name / "requests.parquet")
        (source / name / "run.json").write_text('{"case": "a", "measured": {}}')
        if name != "a":  # its log was lost
            write_compact(steps, source / name / "steps.parquet")
    assert pack([source], out) == ["a", "a_rep2", "a_rep10"]
    assert [path.parent.name for path in out.glob("*/steps.parquet")] == ["a_rep2"]
    pack([source], tmp_path / "logs", every_log=True)
    logs = (tmp_path / "logs").glob("*/steps.parquet")
    assert sorted(path.parent.name for path in logs) == ["a_rep10", "a_rep2"]
    for name, kept in (("a", []), ("a_rep2", [500_000, 700_000]), ("a_rep10", [])):
        table = pq.read_table(out / name / "requests.parquet")
        assert table["token_times_us"].to_pylist() == [kept]
        assert table["ttft_s"].equals(requests["ttft_s"])
        assert json.loads((out / name / "run.json").read_text()) == {"case": "a"}


def test_packed_runs_tell_what_workers_need_between_their_calls(tmp_path: Path) -> None:
    run = tmp_path / "source" / "a"
    write_compact(table_of([outcome(100.0, [100.5])], 99.0), run / "requests.parquet")
    (run / "run.json").write_text(json.dumps({"machine": {"start_monotonic_s": 99.0}}))
    sent_s = {"execute_end_s": [1.0, 1.002], "sample_end_s": [1.001, 1.003]}
    steps = {name: [1.0, 1.0] for name in TIME_COLUMNS} | {name: [4, 4] for name in COUNT_COLUMNS} | sent_s
    write_compact(pa.table(steps), run / "steps.parquet")
    call = {"execute_begin_s": 100.001, "execute_end_s": 100.011}
    call |= {"sample_begin_s": 100.01104, "sample_end_s": 100.02}
    call |= {"scheduled_tokens": 4, "scheduled_requests": 4, "most_tokens": 1, "execute_faults": 64}
    behind = {name: value + 0.01907 if name.endswith("_s") else value for name, value in call.items()}
    for rank in (0, 1):
        write_compact(pa.Table.from_pylist([call, behind]), run / "logs" / f"worker_{rank}.parquet")
    pack([tmp_path / "source"], tmp_path / "out")
    calls = pq.read_table(tmp_path / "out" / "a" / "workers.parquet").to_pylist()
    assert [one["rank"] for one in calls] == [0, 0, 1, 1]
    assert [one["to_sample_us"] for one in calls] == pytest.approx([40.0] * 4, abs=0.1)
    assert calls[1]["to_execute_us"] == pytest.approx(70.0, abs=0.1)
    assert np.isnan(calls[0]["to_execute_us"])
    assert [one["execute_faults"] for one in calls] == [64] * 4


def test_packed_runs_keep_a_log_an_engine_process(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "packed"
    row = dict.fromkeys(sglang_log.TIME_COLUMNS, 1.0000004) | {"end_s": 2.5}
    row |= dict.fromkeys(sglang_log.PIPELINE_TIME_COLUMNS, float("nan"))
    row |= dict.fromkeys(sglang_log.COUNT_COLUMNS, 3) | dict.fromkeys(sglang_log.TEXT_COLUMNS, "DECODE")
    for name, start_s in (("a", 1.0), ("a_rep2", 2.0), ("a_rep3", 2.0)):
        write_compact(table_of([outcome(100.0, [100.5])], 99.0), source / name / "requests.parquet")
        (source / name / "run.json").write_text(json.dumps({"engine_start_s": start_s}))
        for stage in (0, 1):
            write_compact(sglang_log.steps_table([row]), source / name / f"steps_tp0_pp{stage}.parquet")
    pack([source], out)
    assert sorted(path.parent.name for path in out.glob("*/steps.parquet")) == ["a", "a_rep2"]
    turns = pq.read_table(out / "a" / "steps.parquet").to_pylist()
    assert [turn["stage"] for turn in turns] == [0, 1]
    assert (turns[0]["recv_begin_us"], turns[0]["end_us"]) == (1_000_000, 2_500_000)
    assert turns[0]["hidden_end_us"] is None
    assert (turns[0]["requests"], turns[0]["processed_mode"]) == (3, "DECODE")
