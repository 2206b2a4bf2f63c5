"""Warmed engines: started once, then forked for each trial."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from revati.engines.base import Http, Replica, ServerControl, ServerProgram, StartedServer
from revati.interception.core import NativeCore
from revati.spec import DeploymentSpec
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import HostMeter

_MODULES = {"sglang": "revati.engines.sglang.start", "vllm": "revati.engines.vllm.start"}


@dataclass(slots=True)
class WarmEngine:
    """An engine ready to serve, and the clock and prices that it runs on."""

    replica: Replica
    core: NativeCore
    meter: HostMeter
    pricing: LaunchPricing


class EngineModule(Protocol):
    """What a module in ``_MODULES`` offers."""

    STAGES_IN_ONE_PROCESS: bool  # whether `start` can run several pipeline stages

    def environment(self) -> dict[str, str]:
        """Environment variables of a process that runs the engine by itself, before anything is imported."""

    def served_environment(self) -> dict[str, str]:
        """Environment variables of an engine that runs as its own processes."""

    def preload(self) -> None:
        """Import what every start of this engine needs; touches no GPU."""

    def template_key(self, spec: DeploymentSpec) -> str:
        """Specs of one key can share a warmed engine."""

    def start(self, spec: DeploymentSpec) -> WarmEngine:
        """Start the engine for all specs of this one's key; raises `InfeasibleError`."""

    def serve(self, spec: DeploymentSpec, work_dir: Path) -> StartedServer:
        """Start the engine as its own processes, in this one's domain; raises `InfeasibleError`."""

    def server_program(self, spec: DeploymentSpec, model_folder: Path, port: int) -> ServerProgram:
        """One replica's HTTP server on this host's port, under emulation; raises `InfeasibleError`."""

    def server_control(self, http: Http) -> ServerControl:
        """What can be asked of a running server."""

    def before_fork(self, warm: WarmEngine, spec: DeploymentSpec) -> None:
        """In the warmed engine: find out what later trials like ``spec`` can reuse."""

    def prepare(self, warm: WarmEngine, spec: DeploymentSpec) -> None:
        """In the forked trial: apply what ``spec`` changes; raises `InfeasibleError`."""


def engine_names() -> list[str]:
    return sorted(_MODULES)


def engine_module(name: str) -> EngineModule:
    """The module of an engine.

    Raises:
        ValueError: for an unknown engine, naming the known ones.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown engine '{name}'; known: {', '.join(engine_names())}")
    module: EngineModule = importlib.import_module(_MODULES[name])
    return module


def needs_processes(engine: str, replicas: int, stages: int) -> bool:
    """Whether a deployment cannot be emulated in one process, but only by processes of its own."""
    return replicas > 1 or (stages > 1 and not engine_module(engine).STAGES_IN_ONE_PROCESS)
