"""What a deployment asks of a running ``vllm serve``, by the endpoints of its development mode."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from revati.engines.base import Http

_ATTEMPTS, _PAUSE_S = 100, 0.1


class HttpControl:
    """One server (see `revati.engines.base.ServerControl`)."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def kv_cache_blocks(self) -> int:
        metrics = await self._http.get("/metrics")
        found = re.search(r'vllm:cache_config_info\{.*num_gpu_blocks="(\d+)"', metrics)
        return int(found[1]) if found else 0

    async def reset(self) -> None:
        for _ in range(_ATTEMPTS):
            # It fails while the blocks of a request that has just finished are still held.
            if (await self._http.post("/reset_prefix_cache"))["success"]:
                break
            await asyncio.sleep(_PAUSE_S)
        else:
            raise RuntimeError("vLLM does not let go of its prefix cache")
        await self._http.post("/collective_rpc", {"method": "revati_begin_measurement"})

    async def usage(self, folder: Path) -> None:
        await self._http.post("/collective_rpc", {"method": "revati_usage", "args": [str(folder)]})
