"""What a deployment needs of an engine: a replica that takes requests and steps in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from revati.virtual_time.interpreter_lock import InterpreterLock

# Tokens of the requests that servers serve before they are measured: prompts, and what each is answered.
WARM_UP_PROMPTS, WARM_UP_OUTPUT = (16, 256, 1024), 8


class InfeasibleError(Exception):
    """The engine cannot run this configuration (memory, GPU count, …); the message is its own reason."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a client sends it; ``index`` identifies it in the workload."""

    index: int
    prompt_token_ids: list[int]
    output_tokens: int
    session: int | None = None  # the conversation that it is a turn of


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """New tokens of one request; the engine's own timestamps are its monotonic clock's, in seconds.

    ``cached_tokens``: of its prompt, that the engine found in its prefix cache; None where it says nothing.
    """

    index: int
    new_tokens: int
    finished: bool
    queued_s: float | None = None
    scheduled_s: float | None = None
    cached_tokens: int | None = None


class Replica(Protocol):
    """One engine; every method runs on, and advances, the virtual core of the engine."""

    @property
    def kv_cache_blocks(self) -> int: ...

    @property
    def lock(self) -> InterpreterLock:
        """Of the process that receives requests and sends outputs."""

    def add(self, request: Request) -> None:
        """Take a request out of the input queue."""

    def has_work(self) -> bool: ...

    def step(self) -> Sequence[RequestOutput]:
        """Run one engine step; returns what it sends to the frontend, possibly nothing."""


class Server(Protocol):
    """An engine that runs as its own processes, seen from its frontend's."""

    @property
    def kv_cache_blocks(self) -> int: ...

    def generate(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Send a request now; yields its tokens as they come."""

    async def usage(self, folder: Path) -> dict[str, float]:
        """What a trial's row says of its timings since `warm_up`; writes ``kernels.parquet``."""

    async def warm_up(self) -> None:
        """Serve a few requests, as real servers have before they are measured, and forget them."""


class StartedServer(Server, Protocol):
    """One that whoever started it has to close."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """The engine's own OpenAI-style HTTP server: one replica, as a program to be started."""

    command: list[str]
    environment: Mapping[str, str]


class Http(Protocol):
    """A client of one server."""

    async def get(self, path: str) -> str:
        """The text of an answer; raises RuntimeError for one with an error's status."""

    async def post(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer to JSON; raises RuntimeError likewise."""


class ServerControl(Protocol):
    """What a deployment asks of an HTTP server besides its OpenAI API."""

    async def kv_cache_blocks(self) -> int: ...

    async def reset(self) -> None:
        """Forget cached prefixes and what `usage` counts; raises RuntimeError if it cannot."""

    async def usage(self, folder: Path) -> None:
        """Write ``kernels.parquet``: the launches since `reset`."""
