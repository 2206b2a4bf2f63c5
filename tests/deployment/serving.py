"""An unmodified server and vLLM's benchmark client in one domain, and the same requests in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

from revati.deployment.fleet import free_port
from revati.deployment.runner import TemplateClient, TemplateServer
from revati.engines.common import cached_model_folder
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.virtual_time.host_table import HostTable, name_for
from revati.workload import Workload

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
    "intermediate_size": 2816, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VLLM = str(Path(sys.executable).parent / "vllm")


def living(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that has ended may wait for its parent to hear of it."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def steady_host(folder: Path, engine: str = "vllm") -> HostSpec:
    """A host whose phases take the same time whenever they are run."""
    kinds: dict[str, dict[str, list[float]]] = {}
    base = name_for("h200_xeon", engine)
    for phase, kind in HostTable.load(base).spread:
        kinds.setdefault(phase, {})[kind] = [1.0, 1.0, 1.0]
    table = folder / "steady.yaml"
    table.write_text(yaml.safe_dump({"base": base, "spread_of": kinds}))
    return HostSpec(str(table))


def commands(
    folder: Path, hf_config: dict[str, Any], server: Sequence[str], client: Sequence[str]
) -> tuple[list[str], Path]:
    """``vllm serve … --and vllm bench serve …``, and where the client's report will be."""
    model, port = cached_model_folder(ModelShape("served", hf_config), tokenizer=True), str(free_port())
    report = folder / "report.json"
    words = [VLLM, "serve", str(model), "--load-format", "dummy", "--port", port, *server, "--and"]
    words += [VLLM, "bench", "serve", "--model", str(model), "--port", port, "--ignore-eos"]
    words += ["--ready-check-timeout-sec", "3000", "--save-result", "--result-filename", str(report), *client]
    return words, report


def measure(
    folder: Path,
    hf_config: dict[str, Any],
    server: Sequence[str],
    client: Sequence[str],
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Run both through ``revati.run`` with ``settings``; returns the client's own report."""
    words, report = commands(folder, hf_config, server, client)
    run = [sys.executable, "-m", "revati.run", *settings, "--", *words]
    finished = subprocess.run(run, capture_output=True, text=True, timeout=3000, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def trace_arguments(workload: Workload, path: Path) -> list[str]:
    """The client's arguments to send a workload: its arrivals and lengths, no shared prefixes."""
    chunk = 16  # tokens that an id in hash_ids stands for
    chunks = int(np.ceil(workload.prompt_tokens.max() / chunk))
    with path.open("w") as file:
        for index in range(len(workload)):
            line = {
                "timestamp": float(workload.arrival_s[index]),
                "input_length": int(workload.prompt_tokens[index]),
                "output_length": int(workload.output_tokens[index]),
                "hash_ids": list(range(index * chunks, (index + 1) * chunks)),
            }
            file.write(json.dumps(line) + "\n")
    return [
        *("--dataset-name", "timed_trace", "--dataset-path", str(path)),
        *("--timed-trace-chunk-hash-size", str(chunk), "--num-prompts", str(len(workload))),
    ]


def in_process(spec: DeploymentSpec, workload: Workload, folder: Path) -> dict[str, float]:
    """The same numbers as the client's report has, of the deployment emulated in one process."""
    with TemplateServer(folder / "engines") as server:
        result = TemplateClient(server.socket_path).run(spec, workload, folder / "trial")
    assert result.status == "ok", result.reason
    assert result.requests_path is not None
    return client_view(result.requests_path, spec.host.name)


def client_view(requests_path: Path, host: str) -> dict[str, float]:
    """What the client would report of these requests.

    It counts from when it sends a request, we from when it should have, which an AsyncLLM's client manages
    only so late (``arrival`` of the host's table).
    """
    table = pq.read_table(requests_path).to_pandas()
    lateness_ms = HostTable.load(host).phase_us("arrival") / 1e3
    gaps_ms = np.concatenate([np.diff(times) for times in table.token_times_us]) / 1e3
    return {
        "median_ttft_ms": float(table.ttft_s.median() * 1e3 - lateness_ms),
        "median_tpot_ms": float(table.tpot_s.median() * 1e3),
        "median_itl_ms": float(np.median(gaps_ms)),
        "output_throughput": float(table.output_tokens.sum() / (table.arrival_s + table.e2e_s).max()),
    }
