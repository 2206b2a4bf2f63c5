"""SGLang as its own processes: `sglang.Engine` here, a scheduler process for each rank."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.runtime_context import get_schedule

from revati.engines.base import WARM_UP_OUTPUT, WARM_UP_PROMPTS, InfeasibleError, Request, RequestOutput
from revati.engines.common import cached_model_folder
from revati.engines.refusals import refusal_environment
from revati.engines.sglang.http_control import FLUSH_S
from revati.engines.sglang.settings import server_arguments
from revati.engines.sglang.state import write_usage
from revati.spec import DeploymentSpec


class SglangServer:
    """One engine with its server's default settings.

    Raises:
        InfeasibleError: SGLang refuses the configuration.
    """

    def __init__(self, spec: DeploymentSpec, work_dir: Path) -> None:
        refusal = work_dir / "refusal.txt"
        refusal.unlink(missing_ok=True)
        os.environ.update(refusal_environment(refusal))
        try:
            self._engine = Engine(**server_arguments(spec, cached_model_folder(spec.model)))
        except (ValueError, AssertionError) as error:  # SGLang's own refusals
            raise InfeasibleError(f"{type(error).__name__}: {error}") from error
        except RuntimeError as error:  # a scheduler's end
            if refusal.exists():
                raise InfeasibleError(refusal.read_text()) from error
            raise
        self._longest_prompt = spec.model.max_position_embeddings - WARM_UP_OUTPUT - 1

    @property
    def kv_cache_blocks(self) -> int:
        """Tokens that the KV cache holds, in pages (of one token by default)."""
        ranks = self._engine._scheduler_init_result.scheduler_infos
        # Newer releases leave the arguments as they were given.
        page_size = self._engine.server_args.page_size or get_schedule().page_size
        return int(ranks[0]["max_total_num_tokens"]) // int(page_size)

    async def generate(self, request: Request) -> AsyncIterator[RequestOutput]:
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": request.output_tokens}
        stream = await self._engine.async_generate(
            input_ids=request.prompt_token_ids, sampling_params=sampling, stream=True
        )
        received = 0
        async for output in stream:
            about: dict[str, Any] = output["meta_info"]
            new_tokens = int(about["completion_tokens"]) - received
            received += new_tokens
            yield RequestOutput(
                index=request.index,
                new_tokens=new_tokens,
                finished=about["finish_reason"] is not None,
                cached_tokens=int(about["cached_tokens"]),
            )

    async def usage(self, folder: Path) -> dict[str, float]:
        """Of the first rank: the others run the like."""
        states = await self._engine.tokenizer_manager.get_internal_state()
        return write_usage(states[0], folder)

    async def warm_up(self) -> None:
        for index, length in enumerate(WARM_UP_PROMPTS):
            request = Request(-1 - index, list(range(min(length, self._longest_prompt))), WARM_UP_OUTPUT)
            async for _ in self.generate(request):
                pass
        flushed = await self._engine.tokenizer_manager.flush_cache(timeout_s=FLUSH_S)
        if not flushed.success:
            raise RuntimeError(f"SGLang does not let go of its prefix cache: {flushed.message}")

    def close(self) -> None:
        self._engine.shutdown()
