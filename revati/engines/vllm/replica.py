"""A vLLM engine core and its request processing, driven step by step in virtual time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import EngineCoreEventType, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor

from revati.engines.base import InfeasibleError, Request, RequestOutput
from revati.engines.vllm.executor import EmulatedExecutor
from revati.engines.vllm.sampling import sampling_parameters
from revati.engines.vllm.settings import engine_arguments
from revati.engines.vllm.shortcuts import skip_irrelevant_warmups
from revati.interception.core import NativeCore
from revati.spec import DeploymentSpec
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import IDLE_STEP, HostMeter, message_shape
from revati.virtual_time.interpreter_lock import InterpreterLock


class VllmReplica:
    """One vLLM engine with the OpenAI server's default settings, in this process.

    Raises:
        InfeasibleError: vLLM refuses the configuration.
    """

    def __init__(
        self,
        spec: DeploymentSpec,
        model_folder: Path,
        native: NativeCore,
        pricing: LaunchPricing,
        meter: HostMeter,
    ) -> None:
        skip_irrelevant_warmups()
        EmulatedExecutor.attach(native, pricing, meter)
        self._meter = meter
        try:
            arguments = engine_arguments(spec, model_folder)
            config = EngineArgs(
                **arguments, distributed_executor_backend=EmulatedExecutor
            ).create_engine_config(UsageContext.OPENAI_API_SERVER)
            self.core = EngineCore(config, EmulatedExecutor, log_stats=True)
        except (ValueError, torch.OutOfMemoryError) as error:  # vLLM's own refusals are ValueErrors
            raise InfeasibleError(f"{type(error).__name__}: {error}") from error
        self.config = config
        self._inputs = InputProcessor(config)
        self._events: dict[str, dict[EngineCoreEventType, float]] = {}
        self._last_step = IDLE_STEP  # whose outputs were handled last
        self.charge_scheduler()

    def charge_scheduler(self) -> None:
        """Charge the time of the engine core's present scheduler."""
        scheduler = self.core.scheduler
        scheduler.schedule = self._timed_schedule(scheduler.schedule)
        scheduler.update_from_output = self._timed_update(scheduler.update_from_output)

    @property
    def executor(self) -> EmulatedExecutor:
        executor = self.core.model_executor
        assert isinstance(executor, EmulatedExecutor)
        return executor

    @property
    def kv_cache_blocks(self) -> int:
        return int(self.config.cache_config.num_gpu_blocks or 0)

    def add(self, request: Request) -> None:
        """Take one request out of the input queue: validate it as the frontend does, then queue it."""
        self._take_lock()
        with self._meter.phase("input", message_shape(self.has_work(), len(request.prompt_token_ids))):
            self.core.add_request(*self.core.preprocess_add_request(self._engine_request(request)))

    def has_work(self) -> bool:
        return self.core.scheduler.has_requests() or bool(self.core.batch_queue)

    @property
    def lock(self) -> InterpreterLock:
        return self.executor.lock

    def step(self) -> Sequence[RequestOutput]:
        # What delayed the last step's launches is known only now.
        self._meter.wait(self.lock.settle(), IDLE_STEP)
        self._take_lock()
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        sent: list[RequestOutput] = []
        for client_outputs in (outputs or {}).values():
            sent.extend(self._output(output) for output in client_outputs.outputs)
        if sent:
            self._meter.charge("output", self._last_step)
        if not self.has_work():
            self.lock.release(self.executor.native.now_ns())
        return sent

    def _take_lock(self) -> None:
        self.lock.take(self.executor.native.now_ns())

    def _engine_request(self, request: Request) -> EngineCoreRequest:
        parameters = sampling_parameters(request.output_tokens)
        return self._inputs.process_inputs(
            str(request.index), {"prompt_token_ids": request.prompt_token_ids}, parameters, ("generate",)
        )

    def _output(self, output: Any) -> RequestOutput:
        events = self._events.setdefault(output.request_id, {})
        for event in output.events or ():
            events.setdefault(event.type, event.timestamp)
        finished = output.finished
        if finished:
            self._events.pop(output.request_id)
        return RequestOutput(
            index=int(output.request_id),
            new_tokens=len(output.new_token_ids),
            finished=finished,
            queued_s=events.get(EngineCoreEventType.QUEUED),
            scheduled_s=events.get(EngineCoreEventType.SCHEDULED),
            cached_tokens=output.prefill_stats.num_cached_tokens if output.prefill_stats else None,
        )

    # What a phase costs depends on the batch, which is known after scheduling and until the update.
    def _timed_schedule(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(schedule)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self._meter.cpu_ns()
            output = schedule(*args, **kwargs)
            spent_ns = self._meter.cpu_ns() - begin
            self._meter.charge("schedule", self.executor.shape_of(output), spent_ns)
            return output

        return timed

    def _timed_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(update)
        def timed(scheduler_output: Any, model_output: Any) -> Any:
            self._take_lock()
            begin = self._meter.cpu_ns()
            outputs = update(scheduler_output, model_output)
            spent_ns = self._meter.cpu_ns() - begin
            self._last_step = self.executor.retire(scheduler_output)
            self._meter.charge("update", self._last_step, spent_ns)
            return outputs

        return timed
