"""What the search needs of the layer below: a server of warmed engines and a client that runs trials.

``revati.deployment`` holds the implementations; their classes are looked up when a sweep starts, so that
nothing here loads an engine.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from revati.engines.warm import needs_processes
from revati.environments import unmeasured_release
from revati.search.errors import ConfigError, unknown
from revati.spec import DeploymentSpec
from revati.workload import Workload

# How a trial's engine runs → module with TemplateServer and TemplateClient.
RUNNERS = {
    "inprocess": "revati.deployment.runner",
    "processes": "revati.deployment.processes",
    "mixed": "revati.deployment.mixed",
}
DEPLOYMENTS = ("auto", "inprocess", "processes")


def runner_for(
    deployment: str, engines: Collection[str], replicas: Collection[int], stages: Collection[int]
) -> str:
    """The module that runs trials with these engines, numbers of replicas and of pipeline stages.

    ``auto``: one replica in one process where the engine can, all others as processes of their own.

    Raises:
        ConfigError: an unknown kind of deployment, or one that cannot have so many replicas.
    """
    if deployment not in DEPLOYMENTS:
        raise unknown("deployment", deployment, DEPLOYMENTS)
    if deployment == "auto":
        separate = {needs_processes(*trial) for trial in itertools.product(engines, replicas, stages)}
        deployment = "mixed" if len(separate) > 1 else "processes" if True in separate else "inprocess"
    elif deployment == "inprocess" and max(replicas) > 1:
        raise ConfigError("deployment=inprocess has one replica; accepted for more: auto, processes")
    return RUNNERS[deployment]


class TrialResult(Protocol):
    """What came of one emulated deployment."""

    status: Literal["ok", "infeasible", "failed"]
    reason: str
    kv_cache_blocks: int
    provenance: Mapping[str, float]  # gpu_time_share_<provenance>, each in [0, 1]
    wall_s: float
    requests_path: Path | None


class Server(Protocol):
    """Keeps warmed engines on this node while it is open."""

    socket_path: Path


class Client(Protocol):
    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult: ...


def open_server(
    runner: str, log_dir: Path, gpu: str, engines: Sequence[str]
) -> AbstractContextManager[Server]:
    """The runner's ``TemplateServer``, to be used in a ``with``; warns of releases that nobody measured."""
    for engine in engines:
        if (warning := unmeasured_release(engine)) is not None:
            print(f"Warning: {warning}", file=sys.stderr)
    module: Any = importlib.import_module(runner)
    return cast(AbstractContextManager[Server], module.TemplateServer(log_dir, engines, gpu))


def connect(runner: str, socket_path: Path) -> Client:
    """The runner's ``TemplateClient``, connected to a server on this node."""
    module: Any = importlib.import_module(runner)
    return cast(Client, module.TemplateClient(socket_path))
