"""Replicas as HTTP servers in one domain of virtual time, kept from trial to trial, and a router for each.

usage: python -m revati.deployment.fleet FOLDER

A process of its own, since a process launches one domain at a time.  Reads a `TrialRequest` a line from its
input and writes a `TrialResult` a line to its output; ends with its input.  The first trial says which
engine is served; later ones may ask for other numbers of replicas, other routing and other workloads.
Between trials the domain stands still.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

from revati.deployment.domain_run import Commands, Failure, open_domain, run_load_generator
from revati.deployment.other_environment import import_from
from revati.deployment.routers import router_arguments
from revati.deployment.wire import TrialRequest, TrialResult
from revati.engines.base import InfeasibleError
from revati.engines.common import cached_model_folder
from revati.engines.emulation import Emulation
from revati.engines.refusals import refusal_environment
from revati.engines.warm import engine_module
from revati.environments import ROUTERS, interpreter
from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.spec import DATA_PARALLEL, DeploymentSpec

_HOST = "127.0.0.1"
_POLL_S = 0.5
_given: set[int] = set()  # ports: whoever asked for one binds it later


def fleet_key(spec: DeploymentSpec) -> str:
    """Deployments of one key can be served by one fleet."""
    balanced = f"_{spec.routing}{spec.replicas}" if spec.routing == DATA_PARALLEL else ""
    return spec.engine_key() + balanced


class Fleet:
    """Servers of one engine, as many as the largest deployment so far needed.

    Args:
        spec: of the first deployment.
        folder: for the servers' logs.
    """

    def __init__(self, spec: DeploymentSpec, folder: Path) -> None:
        self._engine, self._folder = engine_module(spec.engine), folder
        folder.mkdir(parents=True, exist_ok=True)
        self._model_folder = cached_model_folder(spec.model, tokenizer=True)
        self._emulation = Emulation(spec.gpu, spec.host, spec.timing_source)
        self._imports = tempfile.TemporaryDirectory(prefix="revati-")
        self._domain = open_domain(spec.host)
        self._commands = Commands(self._domain)
        self._urls: list[str] = []

    def run(self, request: TrialRequest) -> TrialResult:
        """Run one trial.

        Raises:
            InfeasibleError: the engine refuses the configuration.
            Failure: a process failed; the fleet is of no use any more.
        """
        spec = request.spec
        servers = 1 if spec.routing == DATA_PARALLEL else spec.replicas
        log_path = request.out_dir / "trial.log"
        self._domain.go_on()
        try:
            self._start_servers(spec, servers)
            urls = self._urls[:servers]
            with log_path.open("ab") as log:
                if spec.routing == DATA_PARALLEL:
                    return self._measure(request, urls, urls[0], log)
                router, entry_url = self._start_router(spec.routing, urls, log)
                try:
                    return self._measure(request, urls, entry_url, log)
                finally:
                    self._commands.end(router)
        finally:
            self._domain.hold()

    def close(self) -> None:
        """End all processes of the domain."""
        self._domain.go_on()
        self._commands.end_all()
        self._domain.end()
        self._imports.cleanup()

    def _start_servers(self, spec: DeploymentSpec, count: int) -> None:
        """Start as many servers as are missing."""
        if not self._urls:
            self._start_together(spec, 1)  # fills the compile caches for all others
        if len(self._urls) < count:
            self._start_together(spec, count - len(self._urls))

    def _start_together(self, spec: DeploymentSpec, count: int) -> None:
        gpus = spec.num_gpus if spec.routing == DATA_PARALLEL else spec.gpus_per_replica
        base = emulated_environment(load_gpu(spec.gpu), gpus, os.environ)
        refusal = self._folder / "refusal.txt"
        refusal.unlink(missing_ok=True)
        for _ in range(count):
            port = free_port()
            program = self._engine.server_program(spec, self._model_folder, port)
            environment = {
                **base,
                **program.environment,
                **self._emulation.to_environment(),
                **refusal_environment(refusal),
            }
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # doubles the import time of every start
            import_from(environment, Path(program.command[0]), Path(self._imports.name) / "python")
            with (self._folder / f"server_{len(self._urls)}.log").open("ab") as log:
                self._commands.start(program.command, environment, log)
            self._urls.append(f"http://{_HOST}:{port}")
        with (self._folder / "start.log").open("ab") as log:
            waiter = self._start_module("revati.deployment.await_servers", self._urls[-count:], log)
            try:
                status = self._commands.wait_for(waiter)
            except Failure as failure:
                if refusal.exists():
                    raise InfeasibleError(refusal.read_text()) from failure
                raise Failure(f"{failure}; logs: {self._folder}") from None
        if status:
            raise Failure(f"waiting for servers ended with status {status}; logs: {self._folder}")

    def _start_router(self, routing: str, urls: Sequence[str], log: Any) -> tuple[Popen[Any], str]:
        port = free_port()
        command = [str(interpreter(ROUTERS)), *router_arguments(routing, urls, _HOST, port)]
        command += ["--prometheus-host", _HOST, "--prometheus-port", str(free_port()), "--log-level", "error"]
        return self._commands.start(command, os.environ, log), f"http://{_HOST}:{port}"

    def _measure(self, request: TrialRequest, urls: Sequence[str], entry_url: str, log: Any) -> TrialResult:
        def run(*files: str) -> int:
            return self._commands.wait_for(self._start_module("revati.deployment.load", files, log))

        served = replace(request, replica_urls=tuple(urls), entry_url=entry_url)
        return run_load_generator(served, run)

    def _start_module(self, module: str, arguments: Sequence[str], log: Any) -> Popen[Any]:
        return self._commands.start([sys.executable, "-m", module, *arguments], os.environ, log)


def free_port() -> int:
    """A TCP port of this host that nobody listens on, that no outgoing connection gets; never one twice."""
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.SystemRandom().randrange(lowest_ephemeral // 2, lowest_ephemeral)
        if port in _given:
            continue
        with socket.socket() as listener, suppress(OSError):
            listener.bind((_HOST, port))
            _given.add(port)
            return port
    raise OSError(f"no free port below {lowest_ephemeral}")


def _die_with(parent: int) -> None:
    # The kernel could tell, but only of the end of the parent's thread that started this process.
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)  # the domain's monitor ends the servers


def main() -> None:
    """Run trials until the input ends, or one shows that the servers are of no use."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends us
    results = os.fdopen(os.dup(1), "wb", buffering=0)
    fleet: Fleet | None = None
    try:
        for line in sys.stdin.buffer:
            request = TrialRequest.from_line(line)
            log_path = request.out_dir / "trial.log"
            over = False
            try:
                fleet = fleet or Fleet(request.spec, folder)
                result = fleet.run(request)
            except (InfeasibleError, ValueError) as error:
                over, result = True, TrialResult("infeasible", str(error), log_path=log_path)
            except Failure as failure:
                over, result = True, TrialResult("failed", str(failure), log_path=log_path)
            results.write(result.to_line())
            if over:
                return
    finally:
        if fleet:
            with suppress(Failure):
                fleet.close()


if __name__ == "__main__":
    main()
