"""What is in a scheduled vLLM step: for the timing, for the host's costs, and which tokens it samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import get_uniform_token_count

from revati.virtual_time.host import IDLE_STEP, StepKind, StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

# (requests, tokens, tokens of each request if all have as many) → how vLLM runs such a step
Dispatch = Callable[[int, int, int | None], CUDAGraphMode]

_KINDS: dict[CUDAGraphMode, StepKind] = {CUDAGraphMode.FULL: "full", CUDAGraphMode.PIECEWISE: "piecewise"}
# Ordinary ids: neither the special ones at the vocabulary's ends nor always the same.
_FIRST_TOKEN_ID, _TOKEN_ID_STRIDE = 100, 7919


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's requests: new tokens, total context and whether the step samples a token for each."""

    query_lens: list[int]
    context_lens: list[int]
    samples: dict[str, int | None]  # request id -> token id, None in the middle of a prompt
    num_prefills: int
    prompt_tokens: int

    def fill(self, output: ModelRunnerOutput) -> None:
        """Give a step's output its tokens: no kernel ran, so those in "device" memory mean nothing."""
        tokens = (self.samples[req_id] for req_id in output.req_ids)
        output.sampled_token_ids = [[] if token is None else [token] for token in tokens]


class BatchReader:
    """Reads the scheduler's outputs in their order; it remembers the prompts' lengths.

    Args:
        config: the engine's `VllmConfig`.
    """

    def __init__(self, config: Any) -> None:
        self._prefill_lens: dict[str, int] = {}
        self._ordinary_ids = max(1, config.model_config.get_vocab_size() - 2 * _FIRST_TOKEN_ID)
        self._ungraphed: StepKind = "eager" if config.model_config.enforce_eager else "compiled"

    def read(self, scheduled: SchedulerOutput) -> Batch:
        computed: dict[str, int] = {}
        for new in scheduled.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            prefill = new.prefill_token_ids or new.prompt_token_ids
            assert prefill is not None
            self._prefill_lens[new.req_id] = len(prefill)
        cached = scheduled.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        query_lens, context_lens = [], []
        samples: dict[str, int | None] = {}
        num_prefills = prompt_tokens = 0
        for req_id, new_tokens in scheduled.num_scheduled_tokens.items():
            context = computed[req_id] + new_tokens
            query_lens.append(new_tokens)
            context_lens.append(context)
            prefill_len = self._prefill_lens[req_id]
            if computed[req_id] < prefill_len:
                num_prefills += 1
                prompt_tokens += new_tokens
            ordinary = _FIRST_TOKEN_ID + context * _TOKEN_ID_STRIDE % self._ordinary_ids
            samples[req_id] = ordinary if context >= prefill_len else None
        for req_id in scheduled.finished_req_ids:
            self._prefill_lens.pop(req_id, None)
        return Batch(query_lens, context_lens, samples, num_prefills, prompt_tokens)

    def shape(self, scheduled: SchedulerOutput, batch: Batch, dispatch: Dispatch) -> StepShape:
        """What a host table needs to know of the step."""
        num_reqs, num_tokens = len(batch.query_lens), scheduled.total_num_scheduled_tokens
        if not num_tokens:
            return IDLE_STEP
        mode = dispatch(
            num_reqs, num_tokens, get_uniform_token_count(num_reqs, num_tokens, max(batch.query_lens))
        )
        return StepShape(_KINDS.get(mode, self._ungraphed), num_reqs, batch.prompt_tokens, batch.num_prefills)


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
