"""SGLang's scheduler under emulation: its own event loop, one turn at a time, on the virtual clock.

The real one loops for ever, takes messages from sockets and sends outputs into others.  Here requests are
handed to it, and its outputs are kept for whoever asked for the turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.managers.scheduler import Scheduler, dispatch_event_loop
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels

from revati.engines.sglang.steps import ChargedSteps
from revati.timing.attach import LaunchPricing
from revati.virtual_time.host import HostMeter


class Outbox:
    """Stands for the socket to the detokenizer."""

    def __init__(self) -> None:
        self._outputs: list[Any] = []

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        self._outputs.append(output)

    def take(self) -> list[Any]:
        outputs, self._outputs = self._outputs, []
        return outputs


class NoMessages:
    """Stands for the sockets that requests come from; they are handed to the scheduler directly."""

    def recv_requests(self, local_reqs: Sequence[Any] = ()) -> list[Any]:
        return list(local_reqs)


class SteppedScheduler(Scheduler):  # type: ignore[misc]  # SGLang is not seen by mypy
    """Runs SGLang's event loop turn by turn; charges host phases; tells the timing what is in a batch.

    ``pricing`` and ``meter`` are the process's (see `attach`), since SGLang's constructor does all the work.
    """

    pricing: LaunchPricing
    meter: HostMeter

    @classmethod
    def attach(cls, pricing: LaunchPricing, meter: HostMeter) -> None:
        cls.pricing, cls.meter = pricing, meter

    def __init__(self, *args: Any) -> None:
        self.outbox = Outbox()
        self._turns = 0
        self._results: deque[Any] = deque()
        self.steps = ChargedSteps(self, self.pricing, self.meter)
        super().__init__(*args)
        self.run_event_loop()  # no turn: makes the loop's streams

    # The loop ends before a turn if this is true.
    @property
    def gracefully_exit(self) -> bool:
        self._turns -= 1
        return self._turns < 0

    @gracefully_exit.setter
    def gracefully_exit(self, value: bool) -> None:
        self._turns = 0

    # The loop starts with an empty queue, but ours has been running for long.
    @property
    def result_queue(self) -> deque[Any]:
        return self._results

    @result_queue.setter
    def result_queue(self, value: deque[Any]) -> None:
        pass

    def turn(self) -> list[Any]:
        """One turn of the event loop; returns what it sends."""
        self._turns = 1
        with torch.cuda.StreamContext(self.schedule_stream):
            dispatch_event_loop(self)
        return self.outbox.take()

    def has_work(self) -> bool:
        return bool(
            self.waiting_queue
            or self.last_batch is not None
            or self.chunked_req is not None
            or not self.running_batch.is_empty()
        )

    def init_ipc_channels(self, port_args: Any) -> None:
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=self.outbox,
            send_to_detokenizer=self.outbox,
            send_metrics_from_scheduler=None,
        )
        self.load_snapshot_writer = None
        self.recv_from_tokenizer = None

    def init_request_receiver(self) -> None:
        self.request_receiver = NoMessages()

    def get_next_batch_to_run(self, *args: Any, **kwargs: Any) -> Any:
        return self.steps.schedule(super().get_next_batch_to_run, *args, **kwargs)

    def run_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return self.steps.run(super().run_batch, batch, *args, **kwargs)

    def process_batch_result(self, batch: Any, result: Any) -> None:
        self.steps.process(super().process_batch_result, batch, result)
