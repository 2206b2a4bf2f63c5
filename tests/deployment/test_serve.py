"""Unmodified vLLM servers and clients as processes of one virtual-time domain.

All but the first are of the ``matrix``: ``pytest -m matrix tests/deployment``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from serving import TINY, client_view, in_process, measure, steady_host, trace_arguments

from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.validate.calibration import calibrated
from revati.validate.runs import read_cases
from revati.workload import Workload

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PROMPT, OUTPUT, REQUESTS, RATE = 200, 30, 24, 10.0  # one request at a time
SHAPES = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}


def evenly_spaced() -> Workload:
    lengths = [np.full(REQUESTS, length) for length in (PROMPT, OUTPUT)]
    return Workload("even", np.arange(1, REQUESTS + 1) / RATE, *lengths)


def parallel_arguments(tp: int, pp: int) -> list[str]:
    return ["--tensor-parallel-size", str(tp), "--pipeline-parallel-size", str(pp)]


def orphaned_domains() -> set[str]:
    """Shared memory of domains whose launcher has ended."""
    names = {path.name for path in Path("/dev/shm").glob("revati-domain-*")}
    return {name for name in names if not psutil.pid_exists(int(name.split("-")[2]))}


def test_an_unmodified_client_measures_an_unmodified_server(tmp_path: Path) -> None:
    before, host = orphaned_domains(), steady_host(tmp_path)  # on which nothing varies
    trace = trace_arguments(evenly_spaced(), tmp_path / "trace.jsonl")
    report = measure(tmp_path, TINY, [], trace, [f"host={host.name}"])
    assert orphaned_domains() <= before
    assert report["completed"] == REQUESTS
    assert report["total_output_tokens"] == REQUESTS * OUTPUT
    # Virtual time: arrivals are exact, and no request meets another.
    assert report["duration"] == pytest.approx(REQUESTS / RATE, rel=0.1)
    assert report["p99_tpot_ms"] == pytest.approx(report["median_tpot_ms"], rel=0.1)


@pytest.mark.matrix
@pytest.mark.parametrize(("tp", "pp"), SHAPES.values(), ids=SHAPES)
def test_a_client_reports_what_one_process_computes(tp: int, pp: int, tmp_path: Path) -> None:
    """A model so small that the host's work, and nothing else, decides."""
    workload, host = evenly_spaced(), steady_host(tmp_path)
    report = measure(
        tmp_path,
        TINY,
        parallel_arguments(tp, pp),
        trace_arguments(workload, tmp_path / "trace.jsonl"),
        [f"num_gpus={tp * pp}", f"host={host.name}"],
    )
    model = ModelShape("tiny", TINY)
    spec = DeploymentSpec("vllm", model, "h200", host, tensor_parallel_size=tp, pipeline_parallel_size=pp)
    for name, value in in_process(spec, workload, tmp_path).items():
        assert report[name] == pytest.approx(value, rel=0.05), name


@pytest.mark.matrix
@pytest.mark.parametrize("shape", ["tp1_pp1", "tp2_pp1", "tp1_pp2"])
def test_a_client_reports_what_a_real_server_did(shape: str, tmp_path: Path) -> None:
    """Llama 13B at 12 requests per second, as measured on H200s; and as emulated in one process."""
    (case,) = read_cases([Path(__file__).parents[2] / "validation" / "runs"], f"llama-13b_{shape}_sg_r12*")
    host = "h200_xeon_contended"
    if calibration := calibrated(case, host, tmp_path):  # on other runs of the same engine
        host = str(calibration.path)
    spec = case.spec(HostSpec(host))
    report = measure(
        tmp_path,
        spec.model.hf_config,
        parallel_arguments(spec.tensor_parallel_size, spec.pipeline_parallel_size),
        trace_arguments(case.workload, tmp_path / "trace.jsonl"),
        [f"num_gpus={spec.num_gpus}", f"host={host}"],
    )
    real = [client_view(run.folder / "requests.parquet", host) for run in case.runs]
    for name, value in in_process(spec, case.workload, tmp_path).items():
        measured = [run[name] for run in real]
        print(f"{shape} {name}: {report[name]:.3f}, in one process {value:.3f}, real {measured}")
        assert report[name] == pytest.approx(value, rel=0.05), name
        assert 0.95 * min(measured) < report[name] < 1.05 * max(measured), name
