"""A vLLM worker in a process of its own: launches priced, host phases charged, tokens supplied."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from revati.engines.refusals import telling_refusals
from revati.engines.vllm.batches import Batch, BatchReader
from revati.engines.vllm.first_start import run_as_for_the_first_time
from revati.engines.vllm.frame_chunks import FrameChunks
from revati.engines.vllm.processes import SENT_AT
from revati.engines.vllm.shortcuts import skip_irrelevant_warmups
from revati.engines.vllm.step_shape import dispatched, step_shape
from revati.interception.gpu import load_gpu
from revati.spec import ModelShape
from revati.timing.attach import LaunchPricing
from revati.timing.estimate import AttentionUse, RankShape
from revati.timing.source import source
from revati.virtual_time.host import IDLE_STEP, Phase, StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

    from revati.engines.vllm.processes import VllmProcess


class SampledOutput(AsyncModelRunnerOutput):  # type: ignore[misc]  # vLLM is not seen by mypy
    """A step's outputs; asking for them waits for the GPU in virtual time."""

    def __init__(self, inner: Any, batch: Batch, step: StepShape, worker: EmulatedWorker) -> None:
        self._inner, self._batch, self._step, self._worker = inner, batch, step, worker

    def get_output(self) -> ModelRunnerOutput:
        meter = self._worker.meter
        if not self._worker.remote:
            self._worker.release_lock()
        with meter.waiting(self._step):
            output: ModelRunnerOutput = self._inner.get_output()
        if self._worker.remote:
            meter.charge("worker_ipc", self._step)
        self._batch.write_samples(output)
        return output

    def get_kv_connector_output(self) -> Any:  # newer releases ask for it where `get_output` fails
        return self._inner.get_kv_connector_output()


class EmulatedWorker:
    """What a worker of this process needs to know of its steps."""

    def __init__(self, worker: Any, process: VllmProcess) -> None:
        config = worker.vllm_config
        process.know(config, worker.rank // config.parallel_config.tensor_parallel_size)
        skip_irrelevant_warmups()
        self._worker, self.meter = worker, process.meter
        self.remote = config.parallel_config.world_size > 1  # a process of its own
        self._config = config
        self._reader = BatchReader(config.model_config.get_vocab_size())
        self._step: tuple[Batch, StepShape] | None = None
        self._called: tuple[Phase, StepShape] | None = None  # what the call in progress ends with
        gpu, parallel = process.emulation.gpu, config.parallel_config
        model = ModelShape(config.model_config.model, config.model_config.hf_text_config.to_dict())
        shape = RankShape.of(model, parallel.tensor_parallel_size)
        timings = source(process.emulation.timing_source).open(gpu, shape)
        attention: AttentionUse = "eager" if config.model_config.enforce_eager else "graph"
        self.pricing = LaunchPricing(process.core, timings, load_gpu(gpu), attention)
        self.pricing.own_time = process.meter.excluded
        self._process = process
        self._frame_chunks = FrameChunks(self.meter, self.remote)

    def release_lock(self) -> None:
        """The engine core of this process waits for the GPU."""
        self._process.lock.release(self._process.core.now_ns())

    def execute(self, run: Any, scheduled: SchedulerOutput) -> Any:
        batch = self._reader.read(scheduled)
        step = step_shape(self._config, scheduled, batch, self._dispatch)
        self._step = batch, step
        if batch.query_lens:
            self.pricing.set_batch(batch.query_lens, batch.context_lens, batch.beginnings)
        if sent_ns := getattr(scheduled, SENT_AT, 0):  # warm-up steps are the worker's own
            self.meter.wait_until(sent_ns + (self.meter.costs.phase_ns("worker_ipc", IDLE_STEP) or 0), step)
        if self.remote and step.num_prefills:
            self.meter.charge("worker_unpack", step)
        self._called = "executed", step
        chunks = self._frame_chunks
        with self.meter.phase("execute", chunks.known(step)), chunks.watched(step):
            output = run(self._worker, scheduled)
        if batch.query_lens and not self._worker.model_runner.is_last_pp_rank:
            self.meter.charge("send", step)
        return output

    def received(self) -> None:
        """Hidden states came from the stage before, whose host is as long at it as this one."""
        if self._step is not None:
            _, step = self._step
            self.meter.wait(self.meter.costs.phase_ns("send", step) or 0, step)

    def sample(self, run: Any, grammar_output: Any) -> Any:
        assert self._step is not None
        batch, step = self._step
        last = self._worker.model_runner.is_last_pp_rank
        self._called = "sampled", step
        with self.meter.phase("sample" if last else "receive", step):
            output = run(self._worker, grammar_output)
        if isinstance(output, AsyncModelRunnerOutput):
            return SampledOutput(output, batch, step, self)
        if output is not None and last:
            batch.write_samples(output)
        return output

    def come_back(self) -> None:
        """This process's main thread ends a call and looks for its next one."""
        if self._called is not None:
            self.meter.charge(*self._called)
            self._called = None

    def usage(self, folder: Path) -> dict[str, float]:
        """What a trial's row says of this worker's timings; the first one writes ``kernels.parquet``."""
        usage = self.pricing.usage()
        if self._worker.rank == 0:
            pq.write_table(usage.table(), folder / "kernels.parquet")
        return usage.columns()

    def _dispatch(self, num_reqs: int, num_tokens: int, uniform: int | None) -> Any:
        return dispatched(self._worker.model_runner.cudagraph_manager, num_reqs, num_tokens, uniform)


def prepare(process: VllmProcess) -> None:
    """Make every worker of this process an emulated one."""
    from vllm.distributed.parallel_state import GroupCoordinator, get_tp_group
    from vllm.v1.executor.multiproc_executor import WorkerProc
    from vllm.v1.worker.gpu_worker import Worker

    init_device, execute, sample = Worker.init_device, Worker.execute_model, Worker.sample_tokens
    measure_memory = Worker.determine_available_memory
    receive, busy_loop = GroupCoordinator.irecv_tensor_dict, WorkerProc.worker_busy_loop

    def init(self: Any) -> None:
        # Before anything is captured: a graph keeps the prices of its launches.
        self._revati = EmulatedWorker(self, process)

        def receive_hidden_states(group: Any, *args: Any, **kwargs: Any) -> Any:
            received = receive(group, *args, **kwargs)
            self._revati.received()
            return received

        GroupCoordinator.irecv_tensor_dict = receive_hidden_states
        init_device(self)
        group = get_tp_group()
        name = (
            f"{self.distributed_init_method} {group.ranks}"  # the same address in one engine's workers only
        )
        process.core.set_all_reduce_group(zlib.crc32(name.encode()), group.rank_in_group, group.world_size)

    def measure_memory_at_first(self: Any) -> int:
        run_as_for_the_first_time(self.model_runner)
        available_bytes: int = measure_memory(self)
        return available_bytes

    def work(self: Any) -> None:
        dequeue = self.rpc_broadcast_mq.dequeue

        def next_call(*args: Any, **kwargs: Any) -> Any:
            self.worker.worker._revati.come_back()
            return dequeue(*args, **kwargs)

        self.rpc_broadcast_mq.dequeue = next_call
        busy_loop(self)

    WorkerProc.worker_busy_loop = work
    Worker.init_device = init
    Worker.determine_available_memory = measure_memory_at_first
    for stage in ("load_model", "determine_available_memory", "compile_or_warm_up_model"):
        setattr(Worker, stage, telling_refusals(getattr(Worker, stage)))
    Worker.execute_model = lambda self, scheduled: self._revati.execute(execute, scheduled)
    Worker.sample_tokens = lambda self, grammar_output: self._revati.sample(sample, grammar_output)
    Worker.revati_usage = lambda self, folder: self._revati.usage(Path(folder))
    Worker.revati_begin_measurement = lambda self: process.core.begin_measurement()
