"""Deployments as real processes in a virtual-time domain; the same interface as `revati.deployment.runner`.

Each trial starts its engine afresh: slower than a fork, and without any of its assumptions about ranks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from revati.deployment.domain_run import Failure, run_commands
from revati.deployment.wire import TrialRequest, TrialResult
from revati.engines.emulation import Emulation
from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.spec import DeploymentSpec
from revati.workload import Workload

__all__ = ["TemplateClient", "TemplateServer", "TrialResult"]


@dataclass(frozen=True, slots=True)
class NoServer:
    """Every trial runs by itself; there is nothing to connect to."""

    socket_path: Path


@contextmanager
def TemplateServer(log_dir: Path, engines: Sequence[str] = ("vllm",), gpu: str = "") -> Iterator[NoServer]:
    yield NoServer(log_dir)


class TemplateClient:
    """Runs trials; one at a time."""

    def __init__(self, socket_path: Path) -> None:
        del socket_path

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        """Run one deployment to its end; ``wall_s`` includes the engine's start."""
        out_dir = Path(out_dir).resolve()
        out_dir.mkdir(parents=True, exist_ok=True)
        log_path = out_dir / "trial.log"
        workload_path, request_path = out_dir / "workload.parquet", out_dir / "request.json"
        result_path = out_dir / "result.json"
        workload.to_parquet(workload_path)
        request_path.write_bytes(TrialRequest(spec, workload_path, out_dir).to_line())
        begin = time.perf_counter()
        try:
            environment = emulated_environment(load_gpu(spec.gpu), spec.num_gpus, os.environ)
            command = [sys.executable, "-m", "revati.deployment.load", str(request_path), str(result_path)]
            status = run_commands(
                [command], Emulation(spec.gpu, spec.host, spec.timing_source), environment, log_path
            )
            if not result_path.exists():
                return TrialResult("failed", f"the load generator ended with {status}", log_path=log_path)
            result = TrialResult.from_line(result_path.read_bytes())
            return replace(result, wall_s=time.perf_counter() - begin)
        except ValueError as error:
            return TrialResult("infeasible", str(error), log_path=log_path)
        except Failure as error:
            return TrialResult("failed", str(error), log_path=log_path)
        finally:
            for path in (workload_path, request_path, result_path):
                path.unlink(missing_ok=True)
