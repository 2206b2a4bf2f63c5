"""Tensor-parallel ranks folded into one process, and as processes of their own.

``pytest -m matrix tests/deployment/test_folded_ranks.py``
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
import yaml
from serving import steady_host

from revati import paths
from revati.deployment import processes, runner
from revati.deployment.metrics import summarize
from revati.spec import DeploymentSpec, ModelShape
from revati.workload import LognormalLengths, Workload

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(3600)]

COMPARED = ("ttft_ms_p50", "ttft_ms_mean", "tpot_ms_p50", "e2e_ms_p50", "output_throughput_tok_per_s")


def served(module: ModuleType, spec: DeploymentSpec, workload: Workload, folder: Path) -> dict[str, float]:
    with module.TemplateServer(folder / "engines", [spec.engine]) as server:
        result = module.TemplateClient(server.socket_path).run(spec, workload, folder)
    assert result.status == "ok", result.reason
    return summarize(pq.read_table(result.requests_path), spec.num_gpus)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_folded_ranks_serve_as_ranks_of_their_own_do(engine: str, tmp_path: Path) -> None:
    """Llama 13B at 12 requests per second, as in the measured runs, but more of them.

    A request's place between two steps is chance, and decides its TTFT: medians need many.
    """
    config = yaml.safe_load((paths.conf_dir() / "model" / "llama13b.yaml").read_text())["hf_config"]
    model, host = ModelShape("llama13b", config), steady_host(tmp_path, engine)
    spec = DeploymentSpec(engine, model, "h200", host, tensor_parallel_size=2)
    workload = Workload.from_poisson(
        "w", request_rate_per_s=12.0, num_requests=2000, lengths=LognormalLengths(), seed=1
    )
    folded = served(runner, spec, workload, tmp_path / "folded")
    apart = served(processes, spec, workload, tmp_path / "apart")
    for name in COMPARED:
        print(f"{engine} {name}: folded {folded[name]:.3f}, apart {apart[name]:.3f}")
    for name in COMPARED:
        assert apart[name] == pytest.approx(folded[name], rel=0.01), name
