"""Replicas of vLLM behind the real routers, in one domain of virtual time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from serving import TINY, living, steady_host

from revati.deployment import processes
from revati.deployment.fleet import free_port
from revati.deployment.provisioning import provision_missing
from revati.deployment.routers import router_arguments
from revati.engines.common import cached_model_folder
from revati.environments import ROUTERS, interpreter
from revati.spec import DeploymentSpec, ModelShape
from revati.workload import FixedLengths, Sessions, SharedPrefixes, Workload

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BLOCK = 16  # tokens of a KV-cache block
PREFIX, OWN, OUTPUT = 1024, 40, 8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.TemplateClient]:
    with processes.TemplateServer(tmp_path_factory.mktemp("servers")) as server:
        yield processes.TemplateClient(server.socket_path)
        left = psutil.Process().children(recursive=True)
        assert len(left) > 4, "a launcher, a monitor, and two servers with an engine each"
    assert not living(left)
    assert not [file for process in left for file in Path("/dev/shm").glob(f"revati-domain-{process.pid}-*")]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> DeploymentSpec:
    model, host = ModelShape("tiny", TINY), steady_host(tmp_path_factory.mktemp("host"))
    return DeploymentSpec("vllm", model, "h200", host, replicas=2, routing="round_robin")


def one_at_a_time(**parts: Any) -> Workload:
    """Requests so far apart that no two of them meet."""
    workload = Workload.from_poisson(
        "w", request_rate_per_s=1.0, num_requests=40, lengths=FixedLengths(OWN, OUTPUT), seed=5, **parts
    )
    return Workload(
        "w", np.arange(len(workload)) * 1.0, workload.prompt_tokens, workload.output_tokens, workload.sharing
    )


def requests_of(
    client: processes.TemplateClient, deployment: DeploymentSpec, workload: Workload, folder: Path
) -> pd.DataFrame:
    result = client.run(deployment, workload, folder)
    assert result.status == "ok", result.reason
    assert result.kv_cache_blocks > 0
    assert sum(result.provenance[f"gpu_time_share_{kind}"] for kind in ("measured", "interpolated")) > 0
    table = pq.read_table(result.requests_path).to_pandas()
    assert [len(times) for times in table.token_times_us] == workload.output_tokens.tolist()
    return table


def test_round_robin_computes_a_prefix_on_every_replica(
    client: processes.TemplateClient, spec: DeploymentSpec, tmp_path: Path
) -> None:
    workload = one_at_a_time(prefixes=SharedPrefixes(groups=5, tokens=PREFIX))
    table = requests_of(client, spec, workload, tmp_path)
    assert workload.sharing is not None
    seen, expected = set(), []
    for group, replica in zip(workload.sharing.prefix_group.tolist(), cycle((0, 1)), strict=False):
        expected.append(PREFIX if (group, replica) in seen else 0)
        seen.add((group, replica))
    assert table.cached_tokens.tolist() == expected
    cold, warm = table.ttft_s[table.cached_tokens == 0], table.ttft_s[table.cached_tokens > 0]
    assert warm.max() < cold.min()
    # Nothing of the machine is in these times.
    assert np.ptp(table.e2e_s - table.ttft_s) < 1e-5


def test_cache_aware_computes_a_prefix_once(
    client: processes.TemplateClient, spec: DeploymentSpec, tmp_path: Path
) -> None:
    workload = one_at_a_time(prefixes=SharedPrefixes(groups=5, tokens=PREFIX))
    table = requests_of(client, replace(spec, routing="cache_aware"), workload, tmp_path)
    assert workload.sharing is not None
    first = pd.Series(workload.sharing.prefix_group).duplicated()
    assert (table.cached_tokens == np.where(first, PREFIX, 0)).all(), "nothing stays from the trial before"


def test_turns_find_what_was_said_before(
    client: processes.TemplateClient, spec: DeploymentSpec, tmp_path: Path
) -> None:
    """Also the answers: clients send back the very tokens that the emulated model has sampled."""
    workload = Workload.from_poisson(
        "w", request_rate_per_s=2.0, num_requests=24, lengths=FixedLengths(OWN, 30), seed=5,
        sessions=Sessions(turns=4, think_time_s=1.0),
    )  # fmt: skip
    table = requests_of(client, replace(spec, routing="consistent_hash"), workload, tmp_path)
    assert workload.sharing is not None
    following = workload.sharing.next_turn()
    for turn, later in zip(count(), following.tolist(), strict=False):
        if later < 0:
            continue
        computed = workload.prompt_tokens[turn] + workload.output_tokens[turn] - 1
        assert table.cached_tokens[later] == computed // BLOCK * BLOCK
        answered_s = table.arrival_s[turn] + table.e2e_s[turn]
        assert table.arrival_s[later] == pytest.approx(answered_s + workload.sharing.think_s[later], abs=1e-6)


@pytest.mark.matrix
def test_vllm_balances_its_own_replicas(
    client: processes.TemplateClient, spec: DeploymentSpec, tmp_path: Path
) -> None:
    workload = one_at_a_time(prefixes=SharedPrefixes(groups=5, tokens=PREFIX))
    table = requests_of(client, replace(spec, routing="data_parallel"), workload, tmp_path)
    first = pd.Series(workload.sharing.prefix_group).duplicated()
    misses = (table.cached_tokens < PREFIX).sum()
    assert (~first).sum() <= misses <= 2 * (~first).sum(), "each replica computes a prefix at most once"


@pytest.mark.matrix
def test_an_unmodified_client_measures_replicas_behind_a_router(spec: DeploymentSpec, tmp_path: Path) -> None:
    provision_missing([ROUTERS])
    vllm = str(Path(sys.executable).parent / "vllm")
    model, report = str(cached_model_folder(spec.model, tokenizer=True)), tmp_path / "report.json"
    ports, entry = [free_port(), free_port()], free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    words = [sys.executable, "-m", "revati.run", "--"]
    for port in ports:
        words += [vllm, "serve", model, "--load-format", "dummy", "--port", str(port), "--and"]
    words += [str(interpreter(ROUTERS)), *router_arguments("round_robin", urls, "127.0.0.1", entry)]
    words += ["--prometheus-port", str(free_port()), "--and"]
    words += [vllm, "bench", "serve", "--model", model, "--port", str(entry), "--dataset-name", "random"]
    words += ["--random-input-len", "200", "--random-output-len", "30", "--ignore-eos", "--num-prompts", "24"]
    words += ["--request-rate", "10", "--burstiness", "1e9", "--ready-check-timeout-sec", "3000"]
    words += ["--save-result", "--result-filename", str(report)]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=850, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    measured = json.loads(report.read_text())
    assert measured["completed"] == 24
    assert measured["p99_tpot_ms"] == pytest.approx(measured["median_tpot_ms"], rel=0.1)


# How an engine calls the limit of requests that run together.
ENGINES = {"vllm": "max_num_seqs", "sglang": "max_running_requests"}


def sweep(folder: Path, engine: str, *arguments: str) -> pd.DataFrame:
    """The trials of a study over routings with four replicas, by routing."""
    words = [sys.executable, "-m", "revati.sweep", "+model=llama7b", f"engine={engine}"]
    words += ["search_space=routing", "knobs.replicas=4", "num_gpus=4", "host.name=h200_xeon"]
    words += ["ray.dashboard=false", "search.max_concurrent=1", f"output_dir={folder}"]
    subprocess.run([*words, *arguments], check=True, timeout=3000)
    trials = pq.read_table(folder / "trials.parquet").to_pandas()
    assert set(trials.status) == {"ok"}, trials.reason.tolist()
    return trials.set_index("routing")


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_cache_aware_wins_where_prefixes_are_shared(engine: str, tmp_path: Path) -> None:
    trials = sweep(
        tmp_path, engine, "workload=shared_prefix", "workload.num_requests=200",
        "knobs.routing=[random,round_robin,power_of_two,cache_aware]",
    )  # fmt: skip
    assert trials.prefix_cache_hit_rate.idxmax() == "cache_aware"
    for metric in ("ttft_ms_p50", "ttft_ms_mean", "tpot_ms_p50"):
        assert trials[metric].idxmin() == "cache_aware"


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_power_of_two_beats_random_where_lengths_are_skewed(engine: str, tmp_path: Path) -> None:
    limit, routings = f"knobs.{ENGINES[engine]}=16", "knobs.routing=[random,power_of_two]"
    trials = sweep(tmp_path, engine, "workload=heavy_tail", limit, routings)
    assert trials.ttft_ms_p99["power_of_two"] < 0.7 * trials.ttft_ms_p99["random"]
