"""What a deployment asks of a running SGLang server, by its own endpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from revati.engines.base import Http
from revati.engines.sglang.state import write_usage

FLUSH_S = 10  # for a server to finish with what it works on


class HttpControl:
    """One server (see `revati.engines.base.ServerControl`)."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def kv_cache_blocks(self) -> int:
        info = await self._info()
        return int(info["max_total_num_tokens"]) // int(info["page_size"])

    async def reset(self) -> None:
        await self._http.get(f"/flush_cache?timeout={FLUSH_S}")  # an emulated scheduler counts anew then

    async def usage(self, folder: Path) -> None:
        write_usage((await self._info())["internal_states"][0], folder)

    async def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(await self._http.get("/server_info"))
        return info
