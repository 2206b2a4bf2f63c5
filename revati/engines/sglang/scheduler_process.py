"""SGLang's scheduler and its worker in a process of their own: launches priced, host phases charged."""

from __future__ import annotations

import functools
import traceback
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.runtime_context import get_parallel

from revati.engines.refusals import telling_refusals
from revati.engines.sglang.settings import text_config
from revati.engines.sglang.state import add_usage
from revati.engines.sglang.steps import ChargedSteps
from revati.interception.gpu import load_gpu
from revati.spec import ModelShape
from revati.timing.attach import LaunchPricing
from revati.timing.estimate import RankShape
from revati.timing.source import source
from revati.virtual_time.host import message_shape

if TYPE_CHECKING:
    from revati.engines.sglang.processes import SglangProcess

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_SENDER = "sglang.srt.managers.scheduler_components.output_sender.SenderWrapper"
_REFUSALS = (ValueError, AssertionError, RuntimeError)  # what SGLang raises for what does not fit


class EmulatedScheduler:
    """What one scheduler process needs to know of its steps."""

    def __init__(self, scheduler: Any, process: SglangProcess, settings: Any, stage: int) -> None:
        process.know(settings, stage)
        self._scheduler, self._meter = scheduler, process.meter
        gpu = process.emulation.gpu
        model = ModelShape(settings.model_path, text_config(settings).to_dict())
        timings = source(process.emulation.timing_source).open(gpu, RankShape.of(model, settings.tp_size))
        self.pricing = LaunchPricing(process.core, timings, load_gpu(gpu), "sglang")
        self.pricing.own_time = process.meter.excluded
        self.steps = ChargedSteps(scheduler, self.pricing, process.meter)
        self._held: list[Callable[[], None]] | None = None  # outputs, until their step is charged
        self._poller: Any = None

    def take_inputs(self, process_input: Callable[..., Any], messages: Any) -> None:
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

        requests = [m for m in messages or () if isinstance(m, TokenizedGenerateReqInput)]
        for number, request in enumerate(requests):
            self._meter.charge("input", message_shape(number > 0, len(request.input_ids or ())))
        process_input(messages)

    def process(self, process_batch_result: Callable[..., Any], batch: Any, result: Any) -> None:
        self._held = []
        try:
            self.steps.process(process_batch_result, batch, result)
        finally:
            held, self._held = self._held, None
        if held:
            self._meter.charge("output", self.steps.processed)
        for send in held:
            send()

    def send(self, send: Callable[[], None]) -> None:
        """A message to the frontend leaves when the work of its step is done, not in the middle."""
        if self._held is None:
            send()
        else:
            self._held.append(send)

    @property
    def _first(self) -> bool:
        """Whether this is the rank that the frontend talks to."""
        return bool(get_parallel().pp_rank == get_parallel().tp_rank == 0)

    def sleep(self) -> None:
        """Wait for a message where the real scheduler looks again and again whether there is one.

        The other ranks wait for the first one.
        """
        if not self._first:
            return
        if self._poller is None:
            self._poller = self._sockets()
        self._poller.poll()

    def _sockets(self) -> Any:
        import zmq

        poller, receiver = zmq.Poller(), self._scheduler.request_receiver
        for socket in (receiver.recv_from_tokenizer, receiver.recv_from_rpc):
            poller.register(socket, zmq.POLLIN)
        return poller


def hooks(process: SglangProcess) -> dict[str, Callable[..., Any]]:
    """Around which of SGLang's methods what runs."""
    emulated: list[EmulatedScheduler] = []  # at most one in a process

    def initialise(
        original: Callable[..., Any], scheduler: Any, settings: Any, ports: Any, *ranks: Any
    ) -> None:
        # Until 0.5.20, SGLang tells its scheduler: GPU, then tensor-parallel, expert and pipeline rank, ...
        tp_rank, pp_rank = ranks[1:4:2] or (get_parallel().tp_rank, get_parallel().pp_rank)
        # Before anything is captured: a graph keeps the prices of its launches.
        emulated.append(EmulatedScheduler(scheduler, process, settings, pp_rank))
        name = f"{ports.nccl_port} {pp_rank}"  # the same port in one engine's processes only
        process.core.set_all_reduce_group(zlib.crc32(name.encode()), tp_rank, settings.tp_size)
        start = telling_refusals(original, _REFUSALS)
        try:
            start(scheduler, settings, ports, *ranks)
        except (*_REFUSALS, torch.OutOfMemoryError) as error:
            traceback.print_exc()
            # For an Exception, SGLang would kill whoever started this process, and it could not say why.
            raise SystemExit(1) from error

    def take_inputs(original: Callable[..., Any], scheduler: Any, messages: Any) -> None:
        emulated[0].take_inputs(functools.partial(original, scheduler), messages)

    def schedule(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        return emulated[0].steps.schedule(functools.partial(original, scheduler), *args, **kwargs)

    def run(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return emulated[0].steps.run(functools.partial(original, scheduler), batch, *args, **kwargs)

    def process_result(original: Callable[..., Any], scheduler: Any, batch: Any, result: Any) -> None:
        emulated[0].process(functools.partial(original, scheduler), batch, result)

    def send(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        emulated[0].send(functools.partial(original, *args, **kwargs))

    def sleep(original: Callable[..., Any], scheduler: Any) -> None:
        emulated[0].sleep()

    def tell_state(original: Callable[..., Any], *args: Any) -> Any:
        output = original(*args)
        add_usage(output.internal_state, emulated[0].pricing.usage())
        return output

    def flush(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        success = original(*args, **kwargs)
        if success:
            process.core.begin_measurement()
        return success

    return {
        f"{_SCHEDULER}.__init__": initialise,
        f"{_SCHEDULER}.process_input_requests": take_inputs,
        f"{_SCHEDULER}.get_next_batch_to_run": schedule,
        f"{_SCHEDULER}.run_batch": run,
        f"{_SCHEDULER}.process_batch_result": process_result,
        f"{_SCHEDULER}.maybe_sleep_on_idle": sleep,
        f"{_SCHEDULER}.get_internal_state": tell_state,
        f"{_SCHEDULER}.flush_cache": flush,
        f"{_SENDER}.send_output": send,
    }
