"""Hands trials with several replicas to fleets (see `fleet`) on this node, one trial a fleet at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from revati.deployment.fleet import fleet_key
from revati.deployment.provisioning import provision_missing
from revati.deployment.wire import TrialRequest, TrialResult, receive_line, send_result
from revati.environments import ROUTERS

_END_S = 30.0  # for a fleet's servers to end by themselves


class _Fleet:
    """A fleet's process."""

    def __init__(self, launcher: str, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.users = 0  # trials that run on it or wait for it
        self._turn = threading.Lock()
        with (folder / "fleet.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", launcher, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env=environment,
            )  # fmt: skip

    def run(self, line: bytes) -> bytes:
        """A trial's result; empty if the fleet is no more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn, suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        return b""

    @property
    def usable(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End its servers, and wait for it; a trial that runs is broken off."""
        assert self._process.stdin is not None
        if self.users:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its domain's monitor ends the servers
            self._process.wait()


class FleetServer:
    """Context manager: takes trials on a Unix socket; its end ends all fleets.

    A fleet stays for later trials of its kind, until one of another kind needs the machine.

    Args:
        socket_path: in a folder of its own, which takes what servers that are killed leave.
        log_dir: keeps the servers' logs.
        launcher: the module that runs as a fleet's process.
    """

    def __init__(self, socket_path: Path, log_dir: Path, launcher: str = "revati.deployment.fleet") -> None:
        self.socket_path, self._log_dir = socket_path, Path(log_dir).resolve()
        self._launcher = launcher
        self._listener = socket.socket(socket.AF_UNIX)
        self._lock = threading.Lock()
        self._fleets: dict[str, _Fleet] = {}
        self._closed = False
        # What is added later marks processes of others, which end before ours (see `leftovers`).
        self._environment = {**os.environ, "TMPDIR": str(socket_path.parent)}

    def __enter__(self) -> FleetServer:
        self._listener.bind(str(self.socket_path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._closed = True
            fleets, self._fleets = list(self._fleets.values()), {}
        for fleet in fleets:
            fleet.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            line = receive_line(connection)
            if not line:
                return
            request = TrialRequest.from_line(line)
            try:
                result = self._run(fleet_key(request.spec), line)
            except Exception as error:
                result = TrialResult("failed", f"{type(error).__name__}: {error}")
            send_result(connection, result)

    def _run(self, key: str, line: bytes) -> TrialResult:
        for _ in range(2):  # the first one may be about to end, after a trial that failed
            fleet = self._take(key)
            try:
                answer = fleet.run(line)
            finally:
                with self._lock:
                    fleet.users -= 1
            if answer:
                return TrialResult.from_line(answer)
            fleet.close()
        return TrialResult("failed", f"the servers' launcher died; see {self._folder(key)}")

    def _take(self, key: str) -> _Fleet:
        with self._lock:
            if self._closed:
                raise RuntimeError("the sweep is over")
            provision_missing([ROUTERS])
            for other, idle in list(self._fleets.items()):
                if not idle.usable or (other != key and not idle.users):
                    self._fleets.pop(other).close()
            if key not in self._fleets:
                self._fleets[key] = _Fleet(self._launcher, self._folder(key), self._environment)
            self._fleets[key].users += 1
            return self._fleets[key]

    def _folder(self, key: str) -> Path:
        return self._log_dir / f"servers_{key}"
