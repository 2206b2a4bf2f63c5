"""vLLM's frontend (API server or AsyncLLM) under emulation: what it charges per request and per output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from revati.engines.frontend import EmulatedFrontend

if TYPE_CHECKING:
    from revati.engines.vllm.processes import VllmProcess


def prepare(process: VllmProcess) -> None:
    """Make every frontend of this process an emulated one."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.output_processor import OutputProcessor

    frontend = EmulatedFrontend(process)
    initialise, add = AsyncLLM.__init__, AsyncMPClient.add_request_async
    handle = OutputProcessor.process_outputs

    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, vllm_config, *args, **kwargs)
        process.know(vllm_config)

    async def add_request(self: Any, request: Any) -> None:
        frontend.submit(len(request.prompt_token_ids or ()))
        await add(self, request)

    def process_outputs(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if outputs:
            frontend.deliver(len(outputs))
        return handle(self, outputs, *args, **kwargs)

    AsyncLLM.__init__ = init
    AsyncMPClient.add_request_async = add_request
    OutputProcessor.process_outputs = process_outputs
