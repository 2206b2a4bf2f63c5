"""Runs emulated deployments: a server of warmed engines on this node, and a client for its trials."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from revati.deployment.leftovers import end_marked, marks
from revati.deployment.other_environment import import_from
from revati.deployment.provisioning import provision_missing
from revati.deployment.wire import TrialRequest, TrialResult, receive_line
from revati.engines.warm import engine_module
from revati.environments import interpreter
from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.spec import DeploymentSpec
from revati.workload import Workload

__all__ = ["TemplateClient", "TemplateServer", "TrialResult"]

_SERVER_VARIABLE = "REVATI_SERVER"
_START_TIMEOUT_S = 300.0
_POLL_S = 0.2


class ServerDiedError(RuntimeError):
    """The process that forks an engine's deployments is gone; the message ends with what it said last."""


def _socket_path(sibling: Path, engine: str) -> Path:
    return sibling.with_name(f"{engine}.sock")


class TemplateServer:
    """Context manager: the processes that fork all engines of this node, one per kind of engine.

    None of them is left afterwards.

    Args:
        log_dir: keeps the engines' logs.
        engines: whose code is imported, each by its own Python.
        gpu: what that code sees when it is imported; the engines it forks say which GPUs they have.
    """

    def __init__(self, log_dir: Path, engines: Sequence[str] = ("vllm",), gpu: str = "h200") -> None:
        self._log_dir, self._engines, self._gpu = Path(log_dir), engines, gpu
        self._folder = Path(tempfile.mkdtemp(prefix="revati-"))  # socket paths must be short
        self.socket_path = _socket_path(self._folder / "any.sock", engines[0])
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> TemplateServer:
        provision_missing(self._engines)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for engine in self._engines:
            self._start(engine)
        return self

    def _start(self, engine: str) -> None:
        python, socket_path = interpreter(engine), _socket_path(self.socket_path, engine)
        environment = emulated_environment(load_gpu(self._gpu), 1, os.environ)
        environment.update(engine_module(engine).environment())
        environment.update(marks(str(self._folder), _SERVER_VARIABLE))
        environment["TMPDIR"] = str(self._folder)  # engines that are killed leave files there
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # doubles the import time of every start
        import_from(environment, python, self._folder / f"python_{engine}")
        command = [str(python), "-m", "revati.deployment.zygote"]
        arguments = [str(socket_path), str(self._log_dir.resolve()), engine]
        log_path = self._log_dir.resolve() / f"zygote_{engine}.log"
        socket_path.with_suffix(".log").symlink_to(log_path)
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command + arguments, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        socket_path.with_suffix(".pid").write_text(str(process.pid))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        end_marked(str(self._folder), _SERVER_VARIABLE, grace_s=0)
        shutil.rmtree(self._folder, ignore_errors=True)


class TemplateClient:
    """Runs trials on the node's server; one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = Path(socket_path)

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        """Run one deployment to its end; whatever goes wrong in the engine is in the result's status."""
        with (
            TrialRequest.stored(spec, workload, out_dir) as request,
            self._connect(_socket_path(self._socket_path, spec.engine)) as connection,
        ):
            connection.sendall(request.to_line())
            line = receive_line(connection)
        if not line:
            folder = request.out_dir
            return TrialResult(
                "failed", f"the trial's process died; see {folder}", log_path=folder / "trial.log"
            )
        return TrialResult.from_line(line)

    def _server_lives(self, socket_path: Path) -> bool:
        try:
            pid = socket_path.with_suffix(".pid").read_text()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"  # nobody waits for it until the server's context ends

    def _connect(self, socket_path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:  # the server listens once its imports are done
            try:
                connection.connect(str(socket_path))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                if not self._server_lives(socket_path):
                    raise ServerDiedError(_last_words(socket_path.with_suffix(".log"))) from None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)


def _last_words(log: Path) -> str:
    if not log.exists():
        return "the server has ended"
    lines = log.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return f"the engine's process has ended; its last words were: {said} ({log.resolve()})"
