"""Unmodified SGLang as its own processes, one virtual clock.

All but the first are of the ``matrix``: ``pytest -m matrix tests/deployment/test_sglang_processes.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from serving import TINY

from revati.deployment import processes, runner
from revati.deployment.fleet import free_port
from revati.deployment.provisioning import provision_missing
from revati.engines.common import cached_model_folder
from revati.environments import interpreter
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.virtual_time.host_table import HostTable
from revati.workload import FixedLengths, LognormalLengths, SharedPrefixes, Workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run ever installs SGLang

# Few graphs, so that an engine starts in seconds.
FEW_GRAPHS = {"cuda_graph_max_bs_decode": 16, "cuda_graph_max_bs_prefill": 256}
OUTPUT = 20


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.TemplateClient]:
    with processes.TemplateServer(tmp_path_factory.mktemp("sglang"), ["sglang"]) as server:
        yield processes.TemplateClient(server.socket_path)


def spec(**changes: Any) -> DeploymentSpec:
    arguments = FEW_GRAPHS | changes.pop("engine_args", {})
    model, host = ModelShape("tiny", TINY | {"num_hidden_layers": 4}), HostSpec("h200_xeon")
    return DeploymentSpec("sglang", model, "h200", host, engine_args=arguments, **changes)


def one_at_a_time(**parts: Any) -> Workload:
    """Requests so far apart that no two of them meet."""
    lengths = FixedLengths(200, OUTPUT)
    drawn = Workload.from_poisson(
        "w", request_rate_per_s=1.0, num_requests=12, lengths=lengths, seed=5, **parts
    )
    arrivals = np.arange(len(drawn)) * 1.0
    return Workload("w", arrivals, drawn.prompt_tokens, drawn.output_tokens, drawn.sharing)


def poisson() -> Workload:
    lengths = LognormalLengths(output_max=60)
    return Workload.from_poisson("w", request_rate_per_s=60.0, num_requests=200, lengths=lengths, seed=3)


def requests_of(client: Any, deployment: DeploymentSpec, workload: Workload, folder: Path) -> pd.DataFrame:
    result = client.run(deployment, workload, folder)
    assert result.status == "ok", result.reason
    assert result.kv_cache_blocks > 0
    assert result.provenance["gpu_time_share_measured"] > 0
    assert len(pq.read_table(folder / "kernels.parquet")) > 10
    table = pq.read_table(result.requests_path).to_pandas()
    assert [len(times) for times in table.token_times_us] == workload.output_tokens.tolist()
    return table


def test_a_pipelines_stages_take_turns(client: processes.TemplateClient, tmp_path: Path) -> None:
    """A lone request's token passes both stages' work and both exchanges, one after the other."""
    table = requests_of(client, spec(pipeline_parallel_size=2), one_at_a_time(), tmp_path)
    host = HostTable.load("h200_xeon_sglang", pipelined=True)
    stage_us = host.phase_us("execute", "full", 1) + host.phase_us("tokens_send") + host.phase_us("receive")
    hidden_us = host.phase_us("send") + host.phase_us("hidden_receive")
    tpot_us = 1e6 * table.tpot_s.median()
    assert 2 * stage_us + hidden_us < tpot_us < 2 * (2 * stage_us + hidden_us)
    # Requests that do not meet cost the same but for the spread of the host's work, and arrive on time.
    assert table.tpot_s.quantile(0.8) < 1.2 * table.tpot_s.min()
    assert (table.submitted_s - table.arrival_s).max() < 2e-3  # asyncio sleeps whole milliseconds


@pytest.mark.matrix
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_processes_report_what_one_process_computes(
    client: processes.TemplateClient, tensor_parallel_size: int, tmp_path: Path
) -> None:
    """Folded or not; the model is so small that the host's work, and nothing else, decides."""
    deployment = spec(tensor_parallel_size=tensor_parallel_size)
    apart = requests_of(client, deployment, poisson(), tmp_path / "processes")
    with runner.TemplateServer(tmp_path / "logs", ["sglang"]) as server:
        one = runner.TemplateClient(server.socket_path)
        together = requests_of(one, deployment, poisson(), tmp_path / "one")
    for name, within in (("tpot_s", 0.03), ("e2e_s", 0.03), ("ttft_s", 0.1)):
        assert apart[name].mean() == pytest.approx(together[name].mean(), rel=within), name


@pytest.mark.matrix
def test_four_stages_work_on_four_batches(client: processes.TemplateClient, tmp_path: Path) -> None:
    table = requests_of(client, spec(pipeline_parallel_size=4), poisson(), tmp_path)
    busy_s = (table.arrival_s + table.e2e_s).max()
    assert table.e2e_s.sum() > 4 * busy_s


@pytest.mark.matrix
def test_what_sglang_refuses_is_infeasible(client: processes.TemplateClient, tmp_path: Path) -> None:
    result = client.run(spec(engine_args={"mem_fraction_static": 0.0001}), one_at_a_time(), tmp_path)
    assert result.status == "infeasible", result.reason
    assert "memory" in result.reason


@pytest.mark.matrix
def test_a_router_sends_prefixes_to_the_replica_that_has_them(
    client: processes.TemplateClient, tmp_path: Path
) -> None:
    workload = one_at_a_time(prefixes=SharedPrefixes(groups=2, tokens=512))
    tables = {
        routing: requests_of(client, spec(replicas=2, routing=routing), workload, tmp_path / routing)
        for routing in ("cache_aware", "round_robin")
    }
    cached = {routing: table.cached_tokens.sum() for routing, table in tables.items()}
    assert cached["cache_aware"] > cached["round_robin"] > 0


@pytest.mark.matrix
def test_sglangs_own_benchmark_measures_its_server(tmp_path: Path) -> None:
    provision_missing(["sglang"])
    python, port = str(interpreter("sglang")), str(free_port())
    model = str(cached_model_folder(spec().model, tokenizer=True))
    report = tmp_path / "report.jsonl"
    words = [sys.executable, "-m", "revati.run", "--", python, "-m", "sglang.launch_server"]
    words += ["--model-path", model, "--load-format", "dummy", "--port", port, "--and"]
    words += [python, "-m", "sglang.bench_serving", "--backend", "sglang", "--model", model, "--port", port]
    words += ["--dataset-name", "random-ids", "--random-input-len", "200", "--random-output-len", "30"]
    words += ["--random-range-ratio", "1", "--num-prompts", "24", "--request-rate", "10"]
    words += ["--output-file", str(report), "--ready-check-timeout-sec", "3000"]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=850, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    measured = json.loads(report.read_text())
    assert (measured["completed"], measured["total_output_tokens"]) == (24, 24 * 30)
    assert measured["median_ttft_ms"] < 20, "virtual time: here each takes seconds"
    assert measured["p99_tpot_ms"] == pytest.approx(measured["median_tpot_ms"], rel=0.3)
