"""vLLM as its own processes: AsyncLLM here, the engine core and its workers in processes of their own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from revati.engines.base import WARM_UP_OUTPUT, WARM_UP_PROMPTS, InfeasibleError, Request, RequestOutput
from revati.engines.common import cached_model_folder
from revati.engines.refusals import refusal_environment
from revati.engines.vllm.sampling import sampling_parameters
from revati.engines.vllm.settings import engine_arguments
from revati.spec import DeploymentSpec


class VllmServer:
    """One engine with the OpenAI server's default settings.

    Raises:
        InfeasibleError: vLLM refuses the configuration.
    """

    def __init__(self, spec: DeploymentSpec, work_dir: Path) -> None:
        try:
            arguments = AsyncEngineArgs(**engine_arguments(spec, cached_model_folder(spec.model)))
            config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
        except ValueError as error:  # vLLM's own refusals
            raise InfeasibleError(f"{type(error).__name__}: {error}") from error
        refusal = work_dir / "refusal.txt"
        refusal.unlink(missing_ok=True)
        os.environ.update(refusal_environment(refusal))
        try:
            self._llm = AsyncLLM.from_vllm_config(config)
        except RuntimeError as error:
            if refusal.exists():
                raise InfeasibleError(refusal.read_text()) from error
            raise
        self._config = config

    @property
    def kv_cache_blocks(self) -> int:
        return int(self._config.cache_config.num_gpu_blocks or 0)

    async def generate(self, request: Request) -> AsyncIterator[RequestOutput]:
        parameters = sampling_parameters(request.output_tokens)
        prompt: Any = {"prompt_token_ids": request.prompt_token_ids}
        async for output in self._llm.generate(prompt, parameters, request_id=str(request.index)):
            stats = output.metrics
            yield RequestOutput(
                index=request.index,
                new_tokens=len(output.outputs[0].token_ids),
                finished=output.finished,
                queued_s=stats.queued_ts if stats else None,
                scheduled_s=stats.scheduled_ts if stats else None,
                cached_tokens=output.num_cached_tokens,
            )

    async def usage(self, folder: Path) -> dict[str, float]:
        """Of the first worker: the others run the like."""
        columns: list[dict[str, float]] = await self._llm.collective_rpc("revati_usage", args=(str(folder),))
        return columns[0]

    async def warm_up(self) -> None:
        longest = self._config.model_config.max_model_len - WARM_UP_OUTPUT
        for index, length in enumerate(WARM_UP_PROMPTS):
            request = Request(-1 - index, list(range(min(length, longest))), WARM_UP_OUTPUT)
            async for _ in self.generate(request):
                pass
        await self._llm.reset_prefix_cache()
        await self._llm.collective_rpc("revati_begin_measurement")

    def close(self) -> None:
        self._llm.shutdown()
