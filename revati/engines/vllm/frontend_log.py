"""A log of vLLM's frontend (AsyncLLM): when messages leave for the engine core and outputs are handled.

A `vllm.general_plugins` plug-in, enabled like the step log (REVATI_STEP_LOG). Times are CLOCK_MONOTONIC
seconds. `write(folder)` is called in the frontend's own process.
"""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.engines.vllm.step_log import ENABLE_VARIABLE

now = time.monotonic
_batches: list[dict[str, Any]] = []
_sent: list[dict[str, Any]] = []


def register() -> None:
    """Make every AsyncLLM of this process keep a log (the plug-in's entry point)."""
    if not os.environ.get(ENABLE_VARIABLE):
        return
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.output_processor import OutputProcessor

    if getattr(AsyncMPClient, "_revati_frontend_log", False):
        return
    AsyncMPClient._revati_frontend_log = True
    receive, add, process = (
        AsyncMPClient.get_output_async,
        AsyncMPClient.add_request_async,
        OutputProcessor.process_outputs,
    )

    async def logged_receive(self: Any) -> Any:
        outputs = await receive(self)
        _batches.append(
            {
                "core_stamp_s": outputs.timestamp,  # set by the engine core at the end of its update
                "received_s": now(),
                "processed_s": 0.0,
                "requests": len(outputs.outputs),
                "finished": sum(output.finished for output in outputs.outputs),
                "backlog": self.outputs_queue.qsize(),
            }
        )
        return outputs

    async def logged_add(self: Any, request: Any) -> None:
        begin = now()
        await add(self, request)
        _sent.append(
            {
                "request_id": request.request_id,
                "prompt_tokens": len(request.prompt_token_ids or ()),
                "encode_begin_s": begin,
                "sent_s": now(),
            }
        )

    def logged_process(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = process(self, *args, **kwargs)
        _batches[-1]["processed_s"] = now()
        return result

    AsyncMPClient.get_output_async = logged_receive
    AsyncMPClient.add_request_async = logged_add
    OutputProcessor.process_outputs = logged_process


def write(folder: str) -> None:
    """Write frontend_batches.parquet and frontend_requests.parquet and forget the rows."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(_batches), path / "frontend_batches.parquet")
    pq.write_table(pa.Table.from_pylist(_sent), path / "frontend_requests.parquet")
    clear()


def clear() -> None:
    """Forget the rows."""
    _batches.clear()
    _sent.clear()
