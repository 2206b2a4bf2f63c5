"""How vLLM runs a scheduled step, as a host table knows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from revati.engines.vllm.batches import Batch
from revati.virtual_time.host import IDLE_STEP, StepKind, StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

# (requests, tokens, tokens of each request if all have as many) → how vLLM runs such a step
Dispatch = Callable[[int, int, int | None], CUDAGraphMode]

_ASKS_FOR_LONGEST = "max_query_len" in inspect.signature(CudaGraphManager.dispatch).parameters  # not in 0.26
_KINDS: dict[CUDAGraphMode, StepKind] = {CUDAGraphMode.FULL: "full", CUDAGraphMode.PIECEWISE: "piecewise"}


def step_shape(config: Any, scheduled: SchedulerOutput, batch: Batch, dispatch: Dispatch) -> StepShape:
    """What a host table needs to know of the step, of an engine with this `VllmConfig`."""
    num_reqs, num_tokens = len(batch.query_lens), scheduled.total_num_scheduled_tokens
    if not num_tokens:
        return IDLE_STEP
    longest = max(batch.query_lens)
    uniform = longest if longest == min(batch.query_lens) else None
    ungraphed: StepKind = "eager" if config.model_config.enforce_eager else "compiled"
    kind = _KINDS.get(dispatch(num_reqs, num_tokens, uniform), ungraphed)
    return StepShape(kind, num_reqs, batch.prompt_tokens, batch.num_prefills)


def dispatched(
    manager: CudaGraphManager, num_reqs: int, num_tokens: int, uniform: int | None
) -> CUDAGraphMode:
    """What a worker's manager decides, without speculative decoding."""
    longest = {"max_query_len": uniform} if _ASKS_FOR_LONGEST else {}
    return manager.dispatch(num_reqs, num_tokens, uniform, 0, **longest).cg_mode


def configured_dispatch(config: Any) -> Dispatch:
    """Like a worker's `CudaGraphManager.dispatch`, in a process that has no worker."""

    def dispatch(num_reqs: int, num_tokens: int, uniform: int | None) -> CUDAGraphMode:
        compilation = config.compilation_config
        sizes = sorted(compilation.cudagraph_capture_sizes or ())
        size = next((size for size in sizes if size >= num_tokens), None)
        if size is None or config.model_config.enforce_eager:
            return CUDAGraphMode.NONE
        mode = compilation.cudagraph_mode
        if uniform == 1 and size <= config.scheduler_config.max_num_seqs and mode.separate_routine():
            return mode.decode_mode()
        return mode.mixed_mode()

    return dispatch
