"""Unmodified vLLM under emulation: real scheduler, real runner, real graphs, no GPU."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from revati.deployment.runner import TemplateClient, TemplateServer, TrialResult
from revati.engines.vllm.start import SHARE_VARIABLE
from revati.spec import DeploymentSpec, HostSpec
from revati.validate.options import validation_dir
from revati.validate.runs import model_shape
from revati.virtual_time.host_table import PHASES
from revati.workload import LognormalLengths, Sessions, SharedPrefixes, Workload
from tests.engines.prefixes import cached_tokens

MakeSpec = Callable[..., DeploymentSpec]
pytestmark = pytest.mark.slow
LENGTHS = LognormalLengths()
STORED_TABLE = Path(__file__).parent.parent / "data" / "table_mode.csv"


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def living(process: psutil.Process) -> bool:
    """Whether it has memory: not a zombie, nor about to be one."""
    try:
        return process.is_running() and bool(process.environ())
    except psutil.Error:
        return False


def test_every_request_gets_its_tokens(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    result = client.run(make_spec(), workload, out_dir)
    assert result.status == "ok", result.reason
    requests = pq.read_table(result.requests_path).to_pydict()
    assert [len(times) for times in requests["token_times_us"]] == workload.output_tokens.tolist()
    assert all(np.all(np.diff(times) >= 0) for times in requests["token_times_us"])
    assert np.all(np.array(requests["ttft_s"]) > 0)
    assert np.all(np.array(requests["queued_s"]) >= np.array(requests["submitted_s"]))
    assert np.all(np.array(requests["scheduled_s"]) >= np.array(requests["queued_s"]))
    shares = [share for name, share in result.provenance.items() if name.startswith("gpu_time_share_")]
    assert sum(shares) == pytest.approx(1.0)
    assert result.kv_cache_blocks > 0


def test_turns_and_prefixes_are_found_in_the_prefix_cache(
    client: TemplateClient, make_spec: MakeSpec, out_dir: Path
) -> None:
    """To the block: what clients send back of an answer is what the emulated model has sampled."""
    workload = Workload.from_poisson(
        "w", request_rate_per_s=1.0, num_requests=24, lengths=LognormalLengths(output_max=60), seed=3,
        prefixes=SharedPrefixes(groups=2, tokens=256), sessions=Sessions(turns=3, think_time_s=0.5),
    )  # fmt: skip
    result = client.run(make_spec(), workload, out_dir)
    assert result.status == "ok", result.reason
    requests = pq.read_table(result.requests_path).to_pandas()
    assert cached_tokens(workload, block=16, left_out=1) == requests.cached_tokens.tolist()
    later = workload.sharing.think_s > 0
    answered_s = requests.arrival_s + requests.e2e_s
    previous = {after: turn for turn, after in enumerate(workload.sharing.next_turn()) if after >= 0}
    for turn in np.flatnonzero(later):
        waited_s = requests.arrival_s[turn] - answered_s[previous[turn]]
        assert waited_s == pytest.approx(workload.sharing.think_s[turn], abs=1e-6)


def test_decode_steps_replay_full_graphs_and_prefills_piecewise_ones(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    client.run(make_spec(), workload, out_dir)
    phases = pq.read_table(out_dir / "phases.parquet").to_pandas()
    executed = phases[phases.phase == "execute"]
    assert set(executed[(executed.prompt_tokens == 0) & (executed.requests > 0)].kind) == {"full"}
    assert set(executed[(executed.prompt_tokens > 0) & (executed.prompt_tokens < 300)].kind) == {"piecewise"}
    assert np.all(phases.end_us.to_numpy() >= phases.begin_us.to_numpy())
    assert np.all(np.diff(phases.begin_us.to_numpy()) >= 0)


def test_table_mode_repeats_itself_on_a_busy_machine(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    first = client.run(make_spec(), workload, tmp_path / "first")
    busy = [multiprocessing.Process(target=burn, args=(20,)) for _ in range(os.cpu_count() or 1)]
    for process in busy:
        process.start()
    second = client.run(make_spec(), workload, tmp_path / "second")
    for process in busy:
        process.terminate()
        process.join()
    assert first.requests_path is not None
    assert second.requests_path is not None
    assert pq.read_table(first.requests_path).equals(pq.read_table(second.requests_path))


def test_table_mode_says_what_it_said_on_another_machine(
    client: TemplateClient, make_spec: MakeSpec, out_dir: Path
) -> None:
    """REVATI_REWRITE=1 makes the stored table again, after a change of timings."""
    index = np.arange(40)
    workload = Workload("arithmetic", index * 0.015, 20 + index * 131 % 900, 2 + index * 17 % 90)
    rows = rounded_rows(client.run(make_spec(seed=7), workload, out_dir / "7"))
    if os.environ.get("REVATI_REWRITE"):
        STORED_TABLE.write_text("\n".join(rows) + "\n")
    assert rows == STORED_TABLE.read_text().split()
    other = rounded_rows(client.run(make_spec(seed=8), workload, out_dir / "8"))
    assert len(set(other) & set(rows)) < len(rows) / 2, "draws of other host times"


def rounded_rows(result: TrialResult) -> list[str]:
    """A trial's requests: latencies in ns, digests of token times."""
    assert result.status == "ok", result.reason
    requests = pq.read_table(result.requests_path)
    nanoseconds = [
        np.rint(1e9 * np.asarray(requests[name])).astype(np.int64)
        for name in ("submitted_s", "queued_s", "scheduled_s", "engine_last_token_s", "ttft_s", "e2e_s")
    ]
    digests = [
        hashlib.sha256(np.asarray(times, np.int64).tobytes()).hexdigest()[:16]
        for times in requests["token_times_us"].to_pylist()
    ]
    return [",".join(map(str, row)) for row in zip(*nanoseconds, digests, strict=True)]


def test_a_forked_trial_equals_a_freshly_started_engine_which_leaves_nothing_behind(
    client: TemplateClient,
    make_spec: MakeSpec,
    workload: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = make_spec(engine_args={"max_num_seqs": 24, "max_num_batched_tokens": 1024})
    forked = client.run(spec, workload, tmp_path / "forked")
    monkeypatch.setenv(SHARE_VARIABLE, "0")
    with TemplateServer(tmp_path / "engines") as own:
        fresh = TemplateClient(own.socket_path).run(spec, workload, tmp_path / "fresh")
        members = [zygote(own), *zygote(own).children(recursive=True)]
    assert (forked.status, fresh.status) == ("ok", "ok"), (forked.reason, fresh.reason)
    assert forked.kv_cache_blocks == pytest.approx(fresh.kv_cache_blocks, rel=1e-3)
    assert pq.read_table(forked.requests_path).equals(pq.read_table(fresh.requests_path))
    assert len(members) > 1
    assert not any(living(process) for process in members)
    assert not own.socket_path.parent.exists()


def test_the_kv_cache_is_as_large_as_really(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    """Compiling a model of a large vocabulary takes more memory than running it does."""
    real = json.loads((validation_dir() / "runs/models-qwen25_14b_tp1_pp1_sg_r6/run.json").read_text())
    spec = replace(make_spec(), model=model_shape(real["model"]))
    result = client.run(spec, workload, out_dir)
    assert result.status == "ok", result.reason
    assert result.kv_cache_blocks == pytest.approx(real["resolved"]["num_gpu_blocks"], rel=1e-3)


def test_narrow_limits_bind(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    result = client.run(
        make_spec(engine_args={"max_num_seqs": 4, "max_num_batched_tokens": 512}), workload, out_dir
    )
    assert result.status == "ok", result.reason
    executed = pq.read_table(out_dir / "phases.parquet").to_pandas().query("phase == 'execute'")
    assert executed.requests.max() == 4
    assert executed.prompt_tokens.max() <= 512


@pytest.mark.matrix  # ranks in stages are not
def test_tensor_parallel_ranks_are_folded_into_one_process(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    result = client.run(make_spec(tensor_parallel_size=4), workload, out_dir)
    assert result.status == "ok", result.reason


def test_fp8_products_are_priced_and_weights_leave_more_for_the_kv_cache(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    runs = {}
    for name, arguments in (("bf16", {}), ("fp8", {"quantization": "fp8"})):
        result = client.run(make_spec(engine_args=arguments), workload, tmp_path / name)
        assert result.status == "ok", result.reason
        kernels = pq.read_table(tmp_path / name / "kernels.parquet").to_pandas()
        runs[name] = result, kernels.set_index("name")
    (bf16, bf16_kernels), (fp8, fp8_kernels) = runs["bf16"], runs["fp8"]
    assert fp8.kv_cache_blocks > bf16.kv_cache_blocks
    products = fp8_kernels[fp8_kernels.kind == "gemm"]
    assert set(products.index) == {"gemm f8e4m3>bf16:TN", "gemm bf16>bf16:TN"}  # the latter to the vocabulary
    assert set(bf16_kernels[bf16_kernels.kind == "gemm"].index) == {"gemm bf16>bf16:TN"}
    weights = [
        set(rows[rows.kind == "gemm"]["shape"].str.partition(", ")[2]) for rows in (fp8_kernels, bf16_kernels)
    ]
    assert weights[0] == weights[1]
    assert fp8_kernels[fp8_kernels.kind == "quant"].launches.sum() > 0
    assert not set(bf16_kernels.kind) & {"quant"}
    assert fp8.provenance["gpu_time_share_roofline"] == 0.0


def test_a_model_that_does_not_fit_is_infeasible_with_vllms_reason(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    huge = {
        "hidden_size": 16384,
        "intermediate_size": 65536,
        "num_hidden_layers": 80,
        "num_attention_heads": 128,
    }
    result = client.run(make_spec(hf_config={**huge, "num_key_value_heads": 128}), workload, out_dir)
    assert result.status == "infeasible"
    assert "out of memory" in result.reason


def test_a_killed_trial_fails_and_the_next_one_runs(
    server: TemplateServer, client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    client.run(make_spec(), workload, tmp_path / "warm")
    template_pids = {process.pid for process in zygote(server).children(recursive=True)}

    def kill_the_new_process() -> None:
        while not (new := {p.pid for p in zygote(server).children(recursive=True)} - template_pids):
            time.sleep(0.01)
        for pid in new:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_new_process)
    killer.start()
    long = Workload.from_poisson("long", request_rate_per_s=30.0, num_requests=400, lengths=LENGTHS, seed=1)
    result = client.run(make_spec(), long, tmp_path / "killed")
    killer.join()
    assert result.status == "failed"
    assert "died" in result.reason
    assert client.run(make_spec(), workload, tmp_path / "after").status == "ok"


def test_required_provenance_is_enforced(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    result = client.run(make_spec(timing_require="measured"), workload, out_dir)
    assert result.status == "infeasible"
    assert result.reason.startswith("timing.require=measured: GPU time is")
    assert "interpolated" in result.reason


@pytest.mark.parametrize("tensor_parallel_size", [pytest.param(1, marks=pytest.mark.matrix), 2])
def test_pipeline_stages_work_on_different_steps_at_once(
    client: TemplateClient,
    make_spec: MakeSpec,
    workload: Workload,
    out_dir: Path,
    tensor_parallel_size: int,
) -> None:
    spec = make_spec(pipeline_parallel_size=2, tensor_parallel_size=tensor_parallel_size)
    result = client.run(spec, workload, out_dir)
    assert result.status == "ok", result.reason
    phases = pq.read_table(out_dir / "phases.parquet").to_pandas().query("requests > 0")
    first, second = (
        phases[(phases.core == f"worker_{stage}") & (phases.phase == "execute")].reset_index()
        for stage in (0, 1)
    )
    assert len(first) == len(second) > 0
    # A stage needs what the one before it has sent, which meanwhile goes on to another step.
    assert (second.end_us > first.end_us).all()
    assert (first.begin_us.shift(-1) < second.end_us).any()
    # Nor does a busy one begin with the next step at once.
    worker = phases[phases.core == "worker_1"].set_index("phase")
    sampled, executing = worker.loc["sampled"], worker.loc["execute"]
    assert (sampled.end_us > sampled.begin_us).all()
    assert (executing.begin_us.to_numpy()[1:] >= sampled.end_us.to_numpy()[:-1]).all()
    # Each has its own rotary table: fetching another stage's in every layer would make it wait for that GPU.
    table_bytes = 4096 * 128 * 2
    kernels = pq.read_table(out_dir / "kernels.parquet").to_pandas()
    copied = kernels[kernels["name"] == "copy d2d"]["shape"]
    assert len(copied) > 0
    assert f"{table_bytes} bytes" not in set(copied)


def test_launches_cost_more_where_their_frames_begin_chunks_of_the_stack(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, tmp_path: Path
) -> None:
    chunk_us = 50.0
    steps = {}
    for name, words in (("fits", 300), ("full", 1900)):
        host = tmp_path / f"{name}.yaml"
        chunks = {"us": chunk_us, "engine_core_words": words, "worker_words": words}
        quiet = {phase: {"any": [1.0, 1.0, 1.0]} for phase in PHASES}
        host.write_text(
            json.dumps({"base": "h200_xeon", "slowdown": 1, "frame_chunks": chunks, "spread_of": quiet})
        )
        result = client.run(make_spec(host=HostSpec(str(host))), workload, tmp_path / name)
        assert result.status == "ok", result.reason
        phases = pq.read_table(tmp_path / name / "phases.parquet").to_pandas().query("phase == 'execute'")
        steps[name] = phases[phases.kind == "piecewise"]
    assert steps["fits"].frame_chunks.max() == 0
    begun = steps["full"].frame_chunks.to_numpy()
    assert begun[0] == 0, "not watched yet"
    assert begun[2:].min() == begun[2:].max() > 2, "each of two layers begins some"
    spent_us = {
        name: (one.end_us - one.begin_us - 71.3468 * one.prefills).iloc[3:].min()
        for name, one in steps.items()
    }
    assert spent_us["full"] - spent_us["fits"] == pytest.approx(chunk_us * begun[-1], rel=0.2)


def test_measured_mode_charges_this_machines_time(
    client: TemplateClient, make_spec: MakeSpec, workload: Workload, out_dir: Path
) -> None:
    result = client.run(make_spec(host=HostSpec("h200_xeon", "measured")), workload, out_dir)
    assert result.status == "ok", result.reason
    phases = pq.read_table(out_dir / "phases.parquet").to_pandas()
    executed = phases[(phases.phase == "execute") & (phases.kind == "full")]
    costs = (executed.end_us - executed.begin_us).to_numpy()
    assert np.unique(costs).size > costs.size / 2  # a meter, not a table


def test_installed_vllm_is_the_wheel_as_published(server: TemplateServer) -> None:
    """While the engine runs: every file that the wheel's RECORD lists has the recorded hash."""
    assert zygote(server).is_running()
    distribution = importlib.metadata.distribution("vllm")
    changed, checked = [], 0
    for file in distribution.files or []:
        if file.hash is None:
            continue
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        checked += 1
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    assert checked > 1000
    assert changed == []


def zygote(server: TemplateServer) -> psutil.Process:
    return psutil.Process(int(server.socket_path.with_suffix(".pid").read_text()))
