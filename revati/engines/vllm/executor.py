"""vLLM's executor under emulation: real workers in this process, their phases on virtual cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm.config import CUDAGraphMode
from vllm.utils.network_utils import get_distributed_init_method, get_ip, get_open_port
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from revati.engines.vllm.batches import Batch, BatchReader
from revati.engines.vllm.first_start import run_as_for_the_first_time
from revati.engines.vllm.fold import FoldedRanks
from revati.engines.vllm.frame_chunks import FrameChunks
from revati.engines.vllm.limits import set_profiled_limits
from revati.engines.vllm.memory import Limits, MemoryOracle
from revati.engines.vllm.pipeline import Pipeline
from revati.engines.vllm.stage import Stage
from revati.engines.vllm.step_shape import dispatched, step_shape
from revati.interception.core import NativeCore
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import IDLE_STEP, HostMeter, Phase, StepShape
from revati.virtual_time.interpreter_lock import InterpreterLock

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput


class SampledFuture(Future[Any]):
    """The outputs of a step; asking for them waits for the GPU in virtual time."""

    def __init__(self, executor: EmulatedExecutor, output: Any, batch: Batch, step: StepShape) -> None:
        super().__init__()
        self._executor, self._output, self._batch, self._step = executor, output, batch, step
        self._sampled_ns = executor.stages[-1].process.now_ns

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            output = self._executor.wait_for(self._output, self._step, self._sampled_ns)
            self._batch.write_samples(output)
            self.set_result(output)
        return super().result()


class EmulatedExecutor(Executor):  # type: ignore[misc]  # vLLM is not seen by mypy
    """Runs the first rank of each pipeline stage; charges host phases; tells the timing each batch.

    With one rank the worker lives in the engine core's process, as in vLLM; else every stage is a process
    with a virtual core of its own.  ``native``, ``pricing`` and ``meter`` are the process's (see `attach`):
    vLLM constructs executors by class.  ``lock``: the engine core's.
    """

    supports_pp = True
    native: NativeCore
    pricing: LaunchPricing
    meter: HostMeter

    @classmethod
    def attach(cls, native: NativeCore, pricing: LaunchPricing, meter: HostMeter) -> None:
        cls.native, cls.pricing, cls.meter = native, pricing, meter

    def _init_executor(self) -> None:
        self._tp_size: int = self.parallel_config.tensor_parallel_size
        self._remote: bool = self.parallel_config.world_size > 1
        self._reader = BatchReader(self.vllm_config.model_config.get_vocab_size())
        self._batches: dict[int, tuple[Batch, StepShape]] = {}  # by identity of the scheduler's output
        self._current: tuple[Batch, StepShape] | None = None
        self.lock = InterpreterLock()
        self._pipeline = Pipeline(self.native, self.pricing.transfer_ns, self._hand_over_ns)
        if self.parallel_config.pipeline_parallel_size > 1:
            self._pipeline.connect()
        ranks = FoldedRanks(self.parallel_config.world_size)
        init_method = get_distributed_init_method(get_ip(), get_open_port())
        self.stages = [
            Stage(index, self.vllm_config, ranks, self.native)
            for index in range(self.parallel_config.pipeline_parallel_size)
        ]
        self._frame_chunks = {stage.rank: FrameChunks(self.meter, self._remote) for stage in self.stages}
        for stage in self.stages:
            stage.start(init_method)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> list[Any]:
        """Call a worker's method; returns a result for each rank."""
        results = [stage.call(method, *args, **(kwargs or {})) for stage in self.stages]
        return [result for result in results for _ in range(self._tp_size)]

    def check_health(self) -> None:
        return

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def determine_available_memory(self) -> list[int]:
        # The first run compiles; the oracle forks after it, so that later answers come soon.
        available_bytes: list[int] = super().determine_available_memory()
        self.memory = MemoryOracle(self._measure_memory)
        return available_bytes

    def _measure_memory(self, limits: Limits) -> list[int]:
        for stage in self.stages:
            set_profiled_limits(stage.runner, limits)
            run_as_for_the_first_time(stage.runner)
        available_bytes: list[int] = super().determine_available_memory()
        return available_bytes

    def shape_of(self, scheduler_output: SchedulerOutput) -> StepShape:
        """Shape of a scheduled step, from its scheduling until `retire`."""
        known = self._batches.get(id(scheduler_output))
        if known is None:
            batch = self._reader.read(scheduler_output)
            shape = step_shape(self.vllm_config, scheduler_output, batch, self._dispatch)
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
            self.pricing.set_batch(batch.query_lens, batch.context_lens, batch.beginnings)
        if self._remote:
            self.meter.charge("dispatch", step)
            if not batch.query_lens:  # the core waits for an empty step at once
                self.lock.release(self.native.now_ns())
        else:
            self.lock.share(self.native.now_ns())
        sent_ns, output = self.native.now_ns(), None
        for stage in self.stages:
            output = self._run(stage, sent_ns, "execute", step, scheduler_output)
        for stage in self.stages[:-1] if batch.query_lens else ():
            with self.meter.on(stage.process, 0):
                self.meter.wait_until(self._pipeline.handed_over_ns(stage.rank), step, "send")
        self._come_back("executed", step)
        if not non_block:
            return output
        future: Future[Any] = Future()
        future.set_result(output)
        return future

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput] | None:
        assert self._current is not None
        batch, step = self._current
        if self._remote:
            self.meter.charge("dispatch_sample", step)
        sent_ns = self.native.now_ns()
        # The last stage samples, the others wait for its tokens.
        output = self._run(self.stages[-1], sent_ns, "sample", step, grammar_output)
        for stage in self.stages[:-1]:
            self._run(stage, sent_ns, "receive", step, grammar_output)
        sampled = SampledFuture(self, output, batch, step)
        self._come_back("sampled", step)
        return sampled if non_block else sampled.result()

    def wait_for(
        self, output: ModelRunnerOutput | AsyncModelRunnerOutput, step: StepShape, sampled_ns: int
    ) -> Any:
        """Wait on the calling virtual core for the GPU's outputs, sampled by ``sampled_ns``."""

        def wait() -> Any:
            with self.meter.waiting(step):
                return output.get_output() if isinstance(output, AsyncModelRunnerOutput) else output

        self.lock.release(self.native.now_ns())
        if not self._remote:
            return wait()
        thread = self.stages[-1].output_thread
        with self.meter.on(thread, sampled_ns):
            result = wait()
            self.meter.charge("worker_ipc", step)
        self.meter.wait_until(thread.now_ns, step)
        return result

    def _run(self, stage: Stage, sent_ns: int, phase: Phase, step: StepShape, argument: Any) -> Any:
        if not self._remote:
            return self._call(stage, phase, step, argument)
        with self.meter.on(stage.process, sent_ns + self._message_ns()):
            if phase == "execute" and step.num_prefills:
                self.meter.charge("worker_unpack", step)
            return self._call(stage, phase, step, argument)

    def _call(self, stage: Stage, phase: Phase, step: StepShape, argument: Any) -> Any:
        if phase != "execute":
            with self.meter.phase(phase, step):
                return stage.call("sample_tokens", argument)
        chunks = self._frame_chunks[stage.rank]
        with self.meter.phase(phase, chunks.known(step)), chunks.watched(step):
            return stage.call("execute_model", argument)

    def _come_back(self, phase: Phase, step: StepShape) -> None:
        """Every worker's process ends a call and looks for its next one."""
        for stage in self.stages if self._remote else ():
            with self.meter.on(stage.process, 0):
                self.meter.charge(phase, step)

    def _message_ns(self) -> int:
        return self.meter.costs.phase_ns("worker_ipc", IDLE_STEP) or 0

    def _hand_over_ns(self) -> int:
        _, step = self._current or (None, IDLE_STEP)
        return self.meter.costs.phase_ns("send", step) or 0

    def _dispatch(self, num_reqs: int, num_tokens: int, uniform: int | None) -> CUDAGraphMode:
        return dispatched(self.stages[0].runner.cudagraph_manager, num_reqs, num_tokens, uniform)
