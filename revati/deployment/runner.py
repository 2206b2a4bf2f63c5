"""Runs emulated deployments: a server of warmed engines on this node, and a client for its trials."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from revati.deployment.wire import TrialRequest, TrialResult, receive_line
from revati.engines.warm import engine_module
from revati.interception.gpu import load_gpu
from revati.interception.preload import emulated_environment
from revati.spec import DeploymentSpec
from revati.workload import Workload

__all__ = ["TemplateClient", "TemplateServer", "TrialResult"]

_START_TIMEOUT_S = 300.0
_POLL_S = 0.2


class TemplateServer:
    """Context manager: the process that forks all engines of this node; its end ends them all.

    Args:
        log_dir: keeps the engines' logs.
        engine: which engine's code it imports.
        gpu: what that code sees when it is imported; the engines it forks say which GPUs they have.
    """

    def __init__(self, log_dir: Path, engine: str = "vllm", gpu: str = "h200") -> None:
        self._log_dir, self._engine, self._gpu = Path(log_dir), engine, gpu
        self._folder = Path(tempfile.mkdtemp(prefix="revati-"))  # socket paths must be short
        self.socket_path = self._folder / "engines.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TemplateServer:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        environment = emulated_environment(load_gpu(self._gpu), 1, os.environ)
        environment.update(engine_module(self._engine).environment())
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # doubles the import time of every start
        command = [sys.executable, "-m", "revati.deployment.zygote"]
        arguments = [str(self.socket_path), str(self._log_dir.resolve()), self._engine]
        with (self._log_dir / "zygote.log").open("wb") as log:
            self._process = subprocess.Popen(
                command + arguments, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.socket_path.with_suffix(".pid").write_text(str(self._process.pid))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            # Engines and trials are in its session and die with their parents besides.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class TemplateClient:
    """Runs trials on the node's server; one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = Path(socket_path)

    def run(self, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> TrialResult:
        """Run one deployment to its end; whatever goes wrong in the engine is in the result's status."""
        out_dir = Path(out_dir).resolve()
        out_dir.mkdir(parents=True, exist_ok=True)
        workload_path = out_dir / "workload.parquet"
        workload.to_parquet(workload_path)
        with self._connect() as connection:
            connection.sendall(TrialRequest(spec, workload_path, out_dir).to_line())
            line = receive_line(connection)
        workload_path.unlink(missing_ok=True)
        if not line:
            return TrialResult(
                "failed", f"the trial's process died; see {out_dir}", log_path=out_dir / "trial.log"
            )
        return TrialResult.from_line(line)

    def _server_lives(self) -> bool:
        pid_file = self._socket_path.with_suffix(".pid")
        try:
            os.kill(int(pid_file.read_text()), 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:  # the server listens once its imports are done
            try:
                connection.connect(str(self._socket_path))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline or not self._server_lives():
                    raise
                time.sleep(_POLL_S)
