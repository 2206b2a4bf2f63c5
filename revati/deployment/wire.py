"""What sweep workers and warmed engines say to each other: one JSON line each way over a Unix socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from revati.spec import DeploymentSpec
from revati.workload import Workload


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """One trial: what to deploy, the workload's file, and the folder for its log and requests.

    ``replica_urls`` and ``entry_url``: of servers that run already, and where requests go.
    """

    spec: DeploymentSpec
    workload_path: Path
    out_dir: Path
    replica_urls: tuple[str, ...] = ()
    entry_url: str = ""

    @classmethod
    @contextmanager
    def stored(cls, spec: DeploymentSpec, workload: Workload, out_dir: Path) -> Iterator[TrialRequest]:
        """A request whose workload lies in ``out_dir``, made if need be, until its trial has ended."""
        out_dir = out_dir.resolve()
        out_dir.mkdir(parents=True, exist_ok=True)
        workload_path = out_dir / "workload.parquet"
        workload.to_parquet(workload_path)
        try:
            yield cls(spec, workload_path, out_dir)
        finally:
            workload_path.unlink(missing_ok=True)

    def to_line(self) -> bytes:
        content = {
            "spec": self.spec.to_json(),
            "workload_path": str(self.workload_path),
            "out_dir": str(self.out_dir),
            "replica_urls": self.replica_urls,
            "entry_url": self.entry_url,
        }
        return json.dumps(content).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> TrialRequest:
        content = json.loads(line)
        return cls(
            DeploymentSpec.from_json(content["spec"]),
            Path(content["workload_path"]),
            Path(content["out_dir"]),
            tuple(content["replica_urls"]),
            content["entry_url"],
        )


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of one emulated deployment; ``wall_s`` excludes the engine's start."""

    status: Literal["ok", "infeasible", "failed"]
    reason: str = ""
    kv_cache_blocks: int = 0
    provenance: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    requests_path: Path | None = None
    log_path: Path | None = None

    def to_line(self) -> bytes:
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> TrialResult:
        content: dict[str, Any] = json.loads(line)
        for name in ("requests_path", "log_path"):
            if content[name] is not None:
                content[name] = Path(content[name])
        return cls(**content)


def receive_line(connection: socket.socket) -> bytes:
    """Read up to and with the next newline; empty at the end of the stream.  Reads not a byte more."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = connection.recv(65536, socket.MSG_PEEK)
        if not part:
            return b""
        end = part.find(b"\n")
        line += connection.recv(end + 1 if end >= 0 else len(part))
    return bytes(line)


def send_result(connection: socket.socket, result: TrialResult) -> None:
    with suppress(BrokenPipeError):  # whoever asked may be gone
        connection.sendall(result.to_line())
