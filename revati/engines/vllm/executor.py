"""vLLM's executor under emulation: the real worker in this process, its phases on the virtual clock."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.gpu.cudagraph_utils import get_uniform_token_count

from revati.engines.vllm.fold import fold_ranks
from revati.engines.vllm.limits import set_profiled_limits
from revati.engines.vllm.memory import Limits, MemoryOracle
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import IDLE_STEP, HostMeter, StepKind, StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

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


class SampledFuture(Future[Any]):
    """The outputs of a step; asking for them waits for the GPU in virtual time."""

    def __init__(self, inner: Future[Any], batch: Batch, step: StepShape, meter: HostMeter) -> None:
        super().__init__()
        self._inner, self._batch, self._step, self._meter = inner, batch, step, meter

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            with self._meter.waiting(self._step):
                output: ModelRunnerOutput = self._inner.result(timeout)
            # No kernel ran: the ids in "device" memory mean nothing.
            tokens = (self._batch.samples[req_id] for req_id in output.req_ids)
            output.sampled_token_ids = [[] if token is None else [token] for token in tokens]
            self.set_result(output)
        return super().result()


class EmulatedExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM is not seen by mypy
    """Runs rank 0 for all ranks; charges host phases; tells the timing what is in each batch.

    ``pricing`` and ``meter`` are the process's (see `attach`): vLLM constructs executors by class.
    """

    pricing: LaunchPricing
    meter: HostMeter

    @classmethod
    def attach(cls, pricing: LaunchPricing, meter: HostMeter) -> None:
        cls.pricing, cls.meter = pricing, meter

    def _init_executor(self) -> None:
        fold_ranks(self.vllm_config.parallel_config.world_size)
        self._prefill_lens: dict[str, int] = {}
        self._vocab_size: int = self.vllm_config.model_config.get_vocab_size()
        self._batches: dict[int, tuple[Batch, StepShape]] = {}  # by identity of the scheduler's output
        self._current: tuple[Batch, StepShape] | None = None
        super()._init_executor()

    def determine_available_memory(self) -> list[int]:
        # The first run compiles; the oracle forks after it, so that later answers come soon.
        available_bytes: list[int] = super().determine_available_memory()
        self.memory = MemoryOracle(self._measure_memory)
        return available_bytes

    def _measure_memory(self, limits: Limits) -> list[int]:
        set_profiled_limits(self.driver_worker.worker.model_runner, limits)
        available_bytes: list[int] = super().determine_available_memory()
        return available_bytes

    def shape_of(self, scheduler_output: SchedulerOutput) -> StepShape:
        """Shape of a scheduled step, from its scheduling until `retire`."""
        known = self._batches.get(id(scheduler_output))
        if known is None:
            batch = self._describe(scheduler_output)
            known = self._batches[id(scheduler_output)] = batch, self._shape(scheduler_output, batch)
        return known[1]

    def retire(self, scheduler_output: SchedulerOutput) -> StepShape:
        """Forget a step whose outputs have been handled; returns its shape."""
        return self._batches.pop(id(scheduler_output))[1]

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        step = self.shape_of(scheduler_output)
        self._current = batch, _ = self._batches[id(scheduler_output)]
        if batch.query_lens:
            self.pricing.set_batch(batch.query_lens, batch.context_lens)
        with self.meter.phase("execute", step):
            return super().execute_model(scheduler_output, non_block)

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        assert self._current is not None
        batch, step = self._current
        with self.meter.phase("sample", step):
            future = super().sample_tokens(grammar_output, non_block=True)
        sampled = SampledFuture(future, batch, step, self.meter)
        return sampled if non_block else sampled.result()

    def _describe(self, scheduled: SchedulerOutput) -> Batch:
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
            ordinary = _FIRST_TOKEN_ID + context * _TOKEN_ID_STRIDE % max(
                1, self._vocab_size - 2 * _FIRST_TOKEN_ID
            )
            samples[req_id] = ordinary if context >= prefill_len else None
        for req_id in scheduled.finished_req_ids:
            self._prefill_lens.pop(req_id, None)
        return Batch(query_lens, context_lens, samples, num_prefills, prompt_tokens)

    def _shape(self, scheduled: SchedulerOutput, batch: Batch) -> StepShape:
        num_reqs, num_tokens = len(batch.query_lens), scheduled.total_num_scheduled_tokens
        if not num_tokens:
            return IDLE_STEP
        runner = self.driver_worker.worker.model_runner
        uniform = get_uniform_token_count(num_reqs, num_tokens, max(batch.query_lens))
        mode = runner.cudagraph_manager.dispatch(num_reqs, num_tokens, uniform, 0).cg_mode
        eager: StepKind = "eager" if self.vllm_config.model_config.enforce_eager else "compiled"
        return StepShape(_KINDS.get(mode, eager), num_reqs, batch.prompt_tokens, batch.num_prefills)
