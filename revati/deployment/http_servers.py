"""Replicas that run as HTTP servers, seen by a client: streamed completions by way of a router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq

from revati.engines.base import WARM_UP_OUTPUT, WARM_UP_PROMPTS, Request, RequestOutput, ServerControl
from revati.engines.tokenizer import text_of
from revati.engines.warm import EngineModule
from revati.spec import DeploymentSpec
from revati.timing.usage import Usage

_POLL_S = 0.1
_DATA, _DONE = b"data: ", b"[DONE]"


class HttpClient:
    """Talks to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self.url = session, url

    async def get(self, path: str) -> str:
        """The text of an answer.

        Raises:
            RuntimeError: the answer's status is an error's.
        """
        async with self._session.get(self.url + path) as answer:
            return await _text(answer)

    async def post(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer to JSON, None if it is empty.

        Raises:
            RuntimeError: the answer's status is an error's.
        """
        async with self._session.post(self.url + path, json=content) as answer:
            text = await _text(answer)
        return json.loads(text) if text else None

    async def complete(self, model: str, request: Request) -> AsyncIterator[RequestOutput]:
        """Send a prompt as text; yields its answer's tokens as they come.

        Raises:
            RuntimeError: the server refuses it, or counts other tokens than were sent and asked for.
        """
        content = {
            "model": model,
            "prompt": text_of(request.prompt_token_ids),
            "max_tokens": request.output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {} if request.session is None else {"x-session-id": f"session-{request.session}"}
        received = 0
        usage: dict[str, Any] = {}
        async with self._session.post(f"{self.url}/v1/completions", json=content, headers=headers) as answer:
            if answer.status != 200:
                await _text(answer)
            async for line in answer.content:
                if not line.startswith(_DATA) or line.startswith(_DATA + _DONE):
                    continue
                part = json.loads(line[len(_DATA) :])
                if "error" in part:
                    raise RuntimeError(f"{self.url}: {part['error']}")
                usage = part.get("usage") or usage
                new_tokens = usage.get("completion_tokens", 0) - received
                received += new_tokens
                if new_tokens:
                    yield RequestOutput(request.index, new_tokens, finished=False)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)  # SGLang leaves out zeros
        counted, expected = usage.get("prompt_tokens"), len(request.prompt_token_ids)
        if counted != expected or received != request.output_tokens:
            raise RuntimeError(
                f"{self.url} counted {counted} tokens in a prompt of {expected} and sent {received} of "
                f"{request.output_tokens}"
            )
        yield RequestOutput(request.index, 0, finished=True, cached_tokens=cached)


class HttpServers:
    """Running replicas and what hands requests to them (see `revati.engines.base.Server`).

    Args:
        session: of the event loop's.
        spec: of the deployment.
        replica_urls: of the servers, one a replica or one for all.
        entry_url: where clients send requests to: a router's, or the server's.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        engine: EngineModule,
        spec: DeploymentSpec,
        replica_urls: Sequence[str],
        entry_url: str,
    ) -> None:
        self._model, self._count = spec.model.name, spec.replicas
        self._replicas = [HttpClient(session, url) for url in replica_urls]
        self._controls: list[ServerControl] = [engine.server_control(http) for http in self._replicas]
        self._entry = HttpClient(session, entry_url)
        self.kv_cache_blocks = 0

    async def warm_up(self) -> None:
        """Serve a few requests on every replica, forget them, and wait until the router knows them all."""
        for replica, control in zip(self._replicas, self._controls, strict=True):
            for length in WARM_UP_PROMPTS:
                request = Request(-1, list(range(length)), WARM_UP_OUTPUT)
                async for _ in replica.complete(self._model, request):
                    pass
            await control.reset()
        blocks = [await control.kv_cache_blocks() for control in self._controls]
        self.kv_cache_blocks = min(blocks) * len(blocks) // self._count  # a server of several tells their sum
        while self._entry.url not in [replica.url for replica in self._replicas]:
            if await self._known_replicas() == len(self._replicas):
                return
            await asyncio.sleep(_POLL_S)

    async def generate(self, request: Request) -> AsyncIterator[RequestOutput]:
        async for output in self._entry.complete(self._model, request):
            yield output

    async def usage(self, folder: Path) -> dict[str, float]:
        """Of all replicas together."""
        tables = []
        for number, control in enumerate(self._controls):
            part = folder / f"replica_{number}"
            part.mkdir(exist_ok=True)
            await control.usage(part)
            tables.append(pq.read_table(part / "kernels.parquet"))
        usage = Usage.of_tables(tables)
        pq.write_table(usage.table(), folder / "kernels.parquet")
        return usage.columns()

    async def _known_replicas(self) -> int:
        """How many healthy replicas the router has."""
        try:
            return int(json.loads(await self._entry.get("/readiness"))["healthy_workers"])
        except (RuntimeError, aiohttp.ClientError):
            return 0


async def wait_until_healthy(session: aiohttp.ClientSession, url: str) -> None:
    """Return when a server that is being started answers."""
    while True:
        try:
            await HttpClient(session, url).get("/health")
            return
        except (RuntimeError, aiohttp.ClientError):
            await asyncio.sleep(_POLL_S)


def open_session() -> aiohttp.ClientSession:
    """A session without limits on connections and times; use it in an ``async with``."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), trust_env=False
    )


async def _text(answer: aiohttp.ClientResponse) -> str:
    text = await answer.text()
    if answer.status >= 400:
        raise RuntimeError(f"{answer.url}: HTTP status {answer.status}: {text[:500]}")
    return text
