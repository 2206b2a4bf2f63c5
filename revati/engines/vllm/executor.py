"""vLLM's executor under emulation: the real worker in this process, its phases on the virtual clock."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput

from revati.engines.vllm.batch import Batch, BatchReader
from revati.engines.vllm.fold import fold_ranks
from revati.engines.vllm.limits import set_profiled_limits
from revati.engines.vllm.memory import Limits, MemoryOracle
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import HostMeter, StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput


class SampledFuture(Future[Any]):
    """The outputs of a step; asking for them waits for the GPU in virtual time."""

    def __init__(self, inner: Future[Any], batch: Batch, step: StepShape, meter: HostMeter) -> None:
        super().__init__()
        self._inner, self._batch, self._step, self._meter = inner, batch, step, meter

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            with self._meter.waiting(self._step):
                output: ModelRunnerOutput = self._inner.result(timeout)
            self._batch.fill(output)
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
        self._reader = BatchReader(self.vllm_config)
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
            batch = self._reader.read(scheduler_output)
            shape = self._reader.shape(scheduler_output, batch, self._dispatch)
            known = self._batches[id(scheduler_output)] = batch, shape
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

    def _dispatch(self, num_reqs: int, num_tokens: int, uniform: int | None) -> CUDAGraphMode:
        manager = self.driver_worker.worker.model_runner.cudagraph_manager
        return manager.dispatch(num_reqs, num_tokens, uniform, 0).cg_mode
