"""vLLM's engine core in a process of its own: scheduling charged, messages under way for their latency."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import EngineCoreRequestType

from revati.engines.refusals import telling_refusals
from revati.engines.vllm.batches import BatchReader
from revati.engines.vllm.delayed_queue import IncomingQueue, OutgoingQueue
from revati.engines.vllm.processes import SENT_AT
from revati.engines.vllm.step_shape import configured_dispatch, step_shape
from revati.virtual_time.host import IDLE_STEP, Phase, StepShape, message_shape

if TYPE_CHECKING:
    from revati.engines.vllm.processes import VllmProcess


class EmulatedCore:
    """Charges the phases of one engine core."""

    def __init__(self, core: Any, process: VllmProcess) -> None:
        process.know(core.vllm_config)
        self._core, self._meter, self._now_ns = core, process.meter, process.core.now_ns
        self._reader = BatchReader(core.vllm_config.model_config.get_vocab_size())
        self._dispatch = configured_dispatch(core.vllm_config)
        self._shapes: dict[int, StepShape] = {}  # by identity of the scheduler's output
        self._scheduled = self._last_step = IDLE_STEP  # scheduled last, and whose outputs were handled last
        scheduler = core.scheduler
        scheduler.schedule = functools.partial(self._schedule, scheduler.schedule)
        scheduler.update_from_output = functools.partial(self._update, scheduler.update_from_output)
        core.add_request = functools.partial(self._add, core.add_request)
        core.step_fn = functools.partial(self._run_step, core.step_fn)
        self._lock = process.lock
        self._remote = core.vllm_config.parallel_config.world_size > 1  # workers have processes of their own
        if self._remote:
            executor = core.model_executor
            executor.execute_model = functools.partial(self._hand_over, "dispatch", executor.execute_model)
            executor.sample_tokens = functools.partial(
                self._hand_over, "dispatch_sample", executor.sample_tokens
            )
        core.input_queue = IncomingQueue(self._now_ns, self._lock, self._input_costs_ns)
        core.input_queue.get = functools.partial(self._get_input, core.input_queue.get)
        core.output_queue = OutgoingQueue(self._now_ns, self._lock, self._output_latency_ns)

    def _schedule(self, schedule: Any, *args: Any, **kwargs: Any) -> Any:
        begin = self._meter.cpu_ns()
        output = schedule(*args, **kwargs)
        spent_ns = self._meter.cpu_ns() - begin
        shape = step_shape(self._core.vllm_config, output, self._reader.read(output), self._dispatch)
        self._shapes[id(output)] = self._scheduled = shape
        self._meter.charge("schedule", shape, spent_ns)
        if not self._remote:
            self._lock.share(self._now_ns())
            self._core.output_queue.released()
        return output

    def _update(self, update: Any, scheduler_output: Any, model_output: Any) -> Any:
        self._lock.take(self._now_ns())
        begin = self._meter.cpu_ns()
        outputs = update(scheduler_output, model_output)
        spent_ns = self._meter.cpu_ns() - begin
        self._last_step = self._shapes.pop(id(scheduler_output))
        self._meter.charge("update", self._last_step, spent_ns)
        return outputs

    def _hand_over(self, phase: Phase, send: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        self._meter.charge(phase, self._scheduled)
        if message is not None:
            setattr(message, SENT_AT, self._now_ns())
        future = send(message, *args, **kwargs)
        if hasattr(future, "result"):
            future.result = functools.partial(self._await, future.result)
        return future

    def _await(self, result: Any, timeout: float | None = None) -> Any:
        self._release()
        return result(timeout)

    def _add(self, add_request: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        self._lock.take(self._now_ns())
        with self._meter.phase("input", message_shape(self._core.has_work(), request.num_prompt_tokens)):
            add_request(request, *args, **kwargs)

    def _get_input(self, get: Any, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            self._release()
        return get(block, timeout)

    def _release(self) -> None:
        self._lock.release(self._now_ns())
        self._core.output_queue.released()

    def _run_step(self, step: Any) -> Any:
        self._meter.wait(self._lock.settle(), IDLE_STEP)  # what delayed the last step's launches
        self._lock.take(self._now_ns())
        outputs, executed = step()
        if any(to_client.outputs for to_client in (outputs or {}).values()):
            self._meter.charge("output", self._last_step)
        return outputs, executed

    def _input_costs_ns(self, message: Any, behind_others: bool) -> tuple[int, int]:
        kind, content = message
        if kind != EngineCoreRequestType.ADD:
            return 0, 0
        shape = message_shape(self._core.has_work() or behind_others, content[0].num_prompt_tokens)
        phase_ns = self._meter.costs.phase_ns
        return phase_ns("ipc", shape) or 0, phase_ns("unpack", shape) or 0

    def _output_latency_ns(self, message: Any) -> int:
        if isinstance(message, bytes) or not message[1].outputs:
            return 0
        return self._meter.costs.phase_ns("output_ipc", StepShape(num_reqs=len(message[1].outputs))) or 0


def prepare(process: VllmProcess) -> None:
    """Make every engine core of this process an emulated one."""
    from vllm.v1.engine.core import EngineCore, EngineCoreProc

    lock = threading.Lock()

    def in_emulated_core(run: Any) -> Any:
        @functools.wraps(run)
        def started(self: Any, *args: Any, **kwargs: Any) -> None:
            with lock:
                if not hasattr(self, "_emulated"):
                    self._emulated = EmulatedCore(self, process)
            run(self, *args, **kwargs)

        return started

    EngineCore._initialize_kv_caches = telling_refusals(EngineCore._initialize_kv_caches)
    # A spawned core loads plug-ins in its constructor, too late to replace it.  The threads of its
    # sockets start when it is complete, and the core waits for them.
    for thread in ("process_input_sockets", "process_output_sockets"):
        setattr(EngineCoreProc, thread, in_emulated_core(getattr(EngineCoreProc, thread)))
