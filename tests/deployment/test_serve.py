"""Unmodified vLLM servers and clients as processes of one virtual-time domain.

The shapes beyond one GPU are of the ``matrix``: ``pytest -m matrix tests/deployment``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from revati.deployment import processes
from revati.deployment.fleet import free_port
from revati.deployment.runner import TemplateClient, TemplateServer
from revati.engines.common import served_model_folder
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.virtual_time.host_table import HostTable
from revati.workload import Workload

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
    "intermediate_size": 2816, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PROMPT, OUTPUT, REQUESTS, RATE = 200, 30, 24, 10.0  # one request at a time
EVEN = 1e9  # burstiness at which requests arrive in even steps


SHARED_MEMORY = Path("/dev/shm")


def tiny_spec(**changes: Any) -> DeploymentSpec:
    return DeploymentSpec("vllm", ModelShape("tiny", TINY), "h200", HostSpec("h200_xeon"), **changes)


def serve_and_measure(tmp_path: Path, num_gpus: int, *server: str) -> dict[str, Any]:
    """Run a server and vLLM's client in a domain; returns the client's own report."""
    model = served_model_folder(tiny_spec().model)
    port, report = str(free_port()), tmp_path / "report.json"
    vllm = str(Path(sys.executable).parent / "vllm")
    client = [vllm, "bench", "serve", "--model", str(model), "--port", port, "--dataset-name", "random"]
    client += ["--random-input-len", str(PROMPT), "--random-output-len", str(OUTPUT), "--ignore-eos"]
    client += ["--num-prompts", str(REQUESTS), "--request-rate", str(RATE), "--burstiness", str(EVEN)]
    client += ["--ready-check-timeout-sec", "3000", "--save-result", "--result-filename", str(report)]
    run = [sys.executable, "-m", "revati.run", f"num_gpus={num_gpus}", "--", vllm, "serve", str(model)]
    run += ["--load-format", "dummy", "--port", port, *server, "--and", *client]
    finished = subprocess.run(run, capture_output=True, text=True, timeout=850, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def in_process(tmp_path: Path) -> dict[str, float]:
    """Median TTFT and TPOT [ms] of the same requests, emulated in one process."""
    with TemplateServer(tmp_path / "engines") as server:
        result = TemplateClient(server.socket_path).run(tiny_spec(), evenly_spaced(), tmp_path / "trial")
    assert result.status == "ok", result.reason
    return medians(result.requests_path)


def evenly_spaced(requests: int = REQUESTS) -> Workload:
    lengths = [np.full(requests, length) for length in (PROMPT, OUTPUT)]
    return Workload("even", np.arange(1, requests + 1) / RATE, *lengths)


def medians(requests_path: Path | None) -> dict[str, float]:
    assert requests_path is not None
    table = pq.read_table(requests_path).to_pandas()
    return {"ttft": table.ttft_s.median() * 1e3, "tpot": table.tpot_s.median() * 1e3}


def test_an_unmodified_client_measures_an_unmodified_server(tmp_path: Path) -> None:
    before = set(SHARED_MEMORY.iterdir())
    report = serve_and_measure(tmp_path, 1)
    assert not [path for path in set(SHARED_MEMORY.iterdir()) - before if path.name.startswith("revati")]
    assert report["completed"] == REQUESTS
    assert report["total_output_tokens"] == REQUESTS * OUTPUT
    # Virtual time: arrivals are exact, and no request meets another.
    assert report["duration"] == pytest.approx(REQUESTS / RATE, rel=0.1)
    assert report["p99_tpot_ms"] == pytest.approx(report["median_tpot_ms"], rel=0.1)


@pytest.mark.matrix
def test_a_server_and_its_client_report_what_one_process_computes(tmp_path: Path) -> None:
    report, expected = serve_and_measure(tmp_path, 1), in_process(tmp_path)
    assert report["median_tpot_ms"] == pytest.approx(expected["tpot"], rel=0.05)
    # The client counts from when it sends a request, we from when it should have.
    lateness_ms = HostTable.load("h200_xeon").phase_us("arrival") / 1e3
    assert report["median_ttft_ms"] == pytest.approx(expected["ttft"] - lateness_ms, rel=0.05)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "shape", [("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2")], ids=["tp2", "pp2"]
)
def test_two_gpus(shape: tuple[str, str], tmp_path: Path) -> None:
    report = serve_and_measure(tmp_path, 2, *shape)
    assert report["completed"] == REQUESTS
    assert report["total_output_tokens"] == REQUESTS * OUTPUT


@pytest.mark.matrix
def test_a_killed_worker_ends_the_trial_soon_and_leaves_nothing(tmp_path: Path) -> None:
    spec = tiny_spec(pipeline_parallel_size=2)
    killed_at: list[float] = []

    def kill_a_worker() -> None:
        me = psutil.Process()
        while not killed_at:
            for process in me.children(recursive=True):
                if "Worker_PP1" in " ".join(process.cmdline()):
                    time.sleep(1)
                    os.kill(process.pid, signal.SIGKILL)
                    killed_at.append(time.monotonic())
                    break
            time.sleep(0.1)

    threading.Thread(target=kill_a_worker).start()
    with processes.TemplateServer(tmp_path) as server:
        client = processes.TemplateClient(server.socket_path)
        result = client.run(spec, evenly_spaced(), tmp_path / "trial")
    assert time.monotonic() - killed_at[0] < 5
    assert result.status == "failed"
    assert "killed" in result.reason or "died" in result.reason
    assert not psutil.Process().children(recursive=True)
    assert not list(Path("/dev/shm").glob(f"revati-domain-{os.getpid()}-*"))
