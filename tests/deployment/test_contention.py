"""What a deployment reports does not depend on what else runs on the machine."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from serving import TINY

from revati.deployment import processes
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.workload import LognormalLengths, Workload

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(3600)]

AT_ONCE = 8


def serve(folder: Path) -> dict[tuple[str, float], float]:
    """Latencies [s] by name and quantile of a deployment as processes, started for this."""
    spec = DeploymentSpec("vllm", ModelShape("tiny", TINY), "h200", HostSpec("h200_xeon"))
    lengths = LognormalLengths(output_max=60)
    workload = Workload.from_poisson("test", request_rate_per_s=30, num_requests=200, lengths=lengths, seed=3)
    with processes.TemplateServer(folder) as server:
        result = processes.TemplateClient(server.socket_path).run(spec, workload, folder)
    assert result.status == "ok", result.reason
    assert result.requests_path is not None
    requests = pq.read_table(result.requests_path).to_pandas()
    return {(name, q): requests[name].quantile(q) for name in ("ttft_s", "tpot_s") for q in (0.5, 0.99)}


def test_eight_deployments_at_once_report_what_one_alone_does(tmp_path: Path) -> None:
    alone = serve(tmp_path / "alone")
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        together = list(pool.map(serve, [tmp_path / str(index) for index in range(AT_ONCE)]))
    for latencies in together:
        for (name, quantile), value in alone.items():
            within = 0.01 if quantile == 0.5 else 0.03
            assert latencies[name, quantile] == pytest.approx(value, rel=within), (name, quantile)
    print(alone, *together, sep="\n")
