"""SGLang's frontend (its tokenizer manager) under emulation: what it charges per request and per output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from revati.engines.frontend import EmulatedFrontend

if TYPE_CHECKING:
    from revati.engines.sglang.processes import SglangProcess

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"


def hooks(process: SglangProcess) -> dict[str, Callable[..., Any]]:
    """Around which of SGLang's methods what runs."""
    frontend = EmulatedFrontend(process)

    def initialise(original: Callable[..., Any], manager: Any, settings: Any, *args: Any) -> None:
        original(manager, settings, *args)
        process.know(settings)

    def send(original: Callable[..., Any], manager: Any, request: Any) -> Any:
        frontend.submit(len(request.input_ids or ()))
        return original(manager, request)  # in newer releases to be awaited

    async def handle(original: Callable[..., Any], manager: Any, outputs: Any) -> None:
        frontend.deliver(len(outputs.rids))
        await original(manager, outputs)

    def include_usage(original: Callable[..., Any], *args: Any) -> tuple[bool, bool]:
        # Clients count an answer's tokens by it, and routers drop the option that asks for it.
        return True, True

    return {
        f"{_MANAGER}.__init__": initialise,
        f"{_MANAGER}._send_one_request": send,
        f"{_MANAGER}._handle_batch_output": handle,
        "sglang.srt.entrypoints.openai.utils.should_include_usage": include_usage,
    }
