"""Each trial as its engine and its number of replicas need; the interface of `revati.deployment.runner`.

One replica is emulated in one process (`runner`) where its engine can be, all others as processes of their
own (`processes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from revati.deployment import processes, runner
from revati.deployment.fleet_server import FleetServer
from revati.deployment.wire import TrialResult
from revati.engines.warm import needs_processes
from revati.spec import DeploymentSpec
from revati.workload import Workload

__all__ = ["TemplateClient", "TemplateServer", "TrialResult"]


@contextmanager
def TemplateServer(
    log_dir: Path, engines: Sequence[str] = ("vllm",), gpu: str = "h200"
) -> Iterator[runner.TemplateServer]:
    with (
        runner.TemplateServer(log_dir, engines, gpu) as server,
        FleetServer(_fleets(server.socket_path), log_dir),
    ):
        yield server


class TemplateClient:
    """Runs trials; one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._one = runner.TemplateClient(socket_path)
        self._processes = processes.TemplateClient(_fleets(socket_path))

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        """Run one deployment to its end."""
        separate = needs_processes(spec.engine, spec.replicas, spec.pipeline_parallel_size)
        client = self._processes if separate else self._one
        return client.run(spec, workload, out_dir)


def _fleets(socket_path: Path) -> Path:
    return Path(socket_path).with_name("fleets.sock")
