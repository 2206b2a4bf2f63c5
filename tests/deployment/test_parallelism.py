"""Tensor against pipeline parallelism on equally many GPUs: one serves sooner, the other more.

``pytest -m matrix tests/deployment/test_parallelism.py``; docs/parallelism.md says why.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from revati import paths
from revati.deployment import mixed
from revati.deployment.metrics import summarize
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.workload import LognormalLengths, Workload

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(3600)]

GPUS = 2
LATENCIES = ("ttft_ms_p50", "tpot_ms_p50", "e2e_ms_p50")
RATE = "request_throughput_req_per_s"


def long_prompts() -> Workload:
    """A batch job that is mostly prefill."""
    return Workload("batch", np.zeros(200), np.full(200, 2048), np.full(200, 32))


def few_requests() -> Workload:
    lengths = LognormalLengths()
    return Workload.from_poisson("few", request_rate_per_s=2.0, num_requests=60, lengths=lengths, seed=1)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_stages_serve_more_of_a_batch_and_ranks_serve_sooner(engine: str, tmp_path: Path) -> None:
    config = yaml.safe_load((paths.conf_dir() / "model" / "llama13b.yaml").read_text())["hf_config"]
    model, host = ModelShape("llama13b", config), HostSpec("h200_xeon")
    served: dict[tuple[str, str], dict[str, float]] = {}
    with mixed.TemplateServer(tmp_path / "engines", [engine]) as server:
        client = mixed.TemplateClient(server.socket_path)
        for ways in ("tensor", "pipeline"):
            spec = DeploymentSpec(engine, model, "h200", host, **{f"{ways}_parallel_size": GPUS})
            for workload in (long_prompts(), few_requests()):
                result = client.run(spec, workload, tmp_path / ways / workload.name)
                assert result.status == "ok", result.reason
                metrics = summarize(pq.read_table(result.requests_path), GPUS)
                served[ways, workload.name] = metrics
                print(engine, ways, workload.name, {n: round(metrics[n], 2) for n in (RATE, *LATENCIES)})
    assert served["pipeline", "batch"][RATE] > served["tensor", "batch"][RATE]
    for name in LATENCIES:
        assert served["tensor", "few"][name] < served["pipeline", "few"][name], name
