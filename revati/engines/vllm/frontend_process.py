"""vLLM's frontend (API server or AsyncLLM) under emulation: what it charges per request and per output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from revati.virtual_time.host import StepShape

if TYPE_CHECKING:
    from revati.engines.vllm.processes import EmulatedProcess

_BACK_TO_BACK_NS = 20_000  # a frontend that was busy until now


class EmulatedFrontend:
    """Charges the event loop's thread of one frontend."""

    def __init__(self, process: EmulatedProcess) -> None:
        self._core, self._meter = process.core, process.meter
        self._free_at_ns = 0

    def submit(self, num_prompt_tokens: int) -> None:
        busy = self._core.now_ns() - self._free_at_ns < _BACK_TO_BACK_NS
        self._charge("frontend_submit", StepShape("busy" if busy else "idle", num_tokens=num_prompt_tokens))

    def deliver(self, num_outputs: int) -> None:
        self._charge("frontend_busy", StepShape(num_reqs=num_outputs))

    def _charge(self, phase: Any, shape: StepShape) -> None:
        self._meter.charge(phase, shape)
        self._free_at_ns = self._core.now_ns()


def prepare(process: EmulatedProcess) -> None:
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
