"""Deployments as real processes in a virtual-time domain; the same interface as `revati.deployment.runner`.

One replica is started afresh for each trial: slower than a fork, and without any of its assumptions about
ranks. Several are HTTP servers behind a real router, and stay for later trials (see `fleet`).
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from revati.deployment.domain_run import Failure, run_commands, run_load_generator
from revati.deployment.fleet_server import FleetServer
from revati.deployment.provisioning import provision_missing
from revati.deployment.wire import TrialRequest, TrialResult, receive_line
from revati.engines.emulation import Emulation
from revati.environments import interpreter
from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.spec import DeploymentSpec
from revati.workload import Workload

__all__ = ["TemplateClient", "TemplateServer", "TrialResult"]

_LAUNCHES = threading.Lock()  # a process launches one domain at a time


@contextmanager
def TemplateServer(
    log_dir: Path, engines: Sequence[str] = ("vllm",), gpu: str = "h200"
) -> Iterator[FleetServer]:
    provision_missing(engines)
    with (
        tempfile.TemporaryDirectory(prefix="revati-") as folder,  # socket paths must be short
        FleetServer(Path(folder) / "fleets.sock", log_dir) as server,
    ):
        yield server


class TemplateClient:
    """Runs trials; one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = Path(socket_path)

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        """Run one deployment to its end; ``wall_s`` includes the engine's start."""
        with TrialRequest.stored(spec, workload, out_dir) as request:
            begin = time.perf_counter()
            result = self._run_on_fleet(request) if spec.replicas > 1 else self._run_alone(request)
            return replace(result, wall_s=time.perf_counter() - begin)

    def _run_on_fleet(self, request: TrialRequest) -> TrialResult:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket_path))
            connection.sendall(request.to_line())
            line = receive_line(connection)
        return TrialResult.from_line(line) if line else TrialResult("failed", "the server of fleets died")

    def _run_alone(self, request: TrialRequest) -> TrialResult:
        """Start the engine and the load generator in a domain of their own."""
        spec, log_path = request.spec, request.out_dir / "trial.log"

        def run(*files: str) -> int:
            environment = emulated_environment(load_gpu(spec.gpu), spec.num_gpus, os.environ)
            emulation = Emulation(spec.gpu, spec.host, spec.timing_source)
            command = [str(interpreter(spec.engine)), "-m", "revati.deployment.load", *files]
            with _LAUNCHES, tempfile.TemporaryDirectory(dir=self._socket_path.parent) as folder:
                environment["TMPDIR"] = folder  # takes what engines that are killed leave
                return run_commands([command], emulation, environment, log_path)

        try:
            return run_load_generator(request, run)
        except ValueError as error:
            return TrialResult("infeasible", str(error), log_path=log_path)
        except Failure as error:
            return TrialResult("failed", str(error), log_path=log_path)
