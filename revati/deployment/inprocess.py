"""One replica and its frontend as a discrete-event loop on two virtual cores.

The engine core and the frontend are processes of their own in a real deployment.  Here one thread runs
both: whichever virtual core is behind goes on, so nothing is received before it was sent.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from revati.deployment.prompts import Turns
from revati.engines.base import Replica, Request, RequestOutput
from revati.interception.core import NativeCore
from revati.virtual_time.host import IDLE_STEP, HostCosts, StepShape, message_shape
from revati.virtual_time.interpreter_lock import ReceivingThread
from revati.workload import Workload

NS_PER_S = 1_000_000_000
_OUTPUT_CHUNK = 128  # requests that a frontend handles before it lets clients run


def seconds_since(start_s: float, monotonic_s: float) -> float:
    """Without the last bits: they differ with the clock's origin, and that from run to run."""
    return round(monotonic_s - start_s, 9)


@dataclass(slots=True)
class RequestRecord:
    """What the client and the engine saw of one request, in virtual seconds from the run's start.

    ``submitted_s``: in one process, when the client's call has sent the request; as processes, and in
    measured runs, when it is made.
    """

    arrival_s: float
    submitted_s: float = float("nan")
    queued_s: float = float("nan")
    scheduled_s: float = float("nan")
    engine_first_token_s: float = float("nan")
    engine_last_token_s: float = float("nan")
    cached_tokens: int | None = None  # of the prompt, that the engine found in its prefix cache
    token_times_s: list[float] = field(default_factory=list)


class _Arrival(NamedTuple):
    at_ns: int
    request: int
    lateness_ns: int  # of the client's timer


class InProcessDeployment:
    """Serves one workload with one replica.

    Args:
        replica: the engine; its code runs on the native clock, which is the engine's virtual core.
        core: that clock.
        costs: frontend phases are charged from it.
    """

    def __init__(self, replica: Replica, core: NativeCore, costs: HostCosts) -> None:
        self._replica, self._core, self._costs = replica, core, costs
        self._start_ns = core.now_ns()
        self._start_monotonic_s = time.monotonic()  # virtual, as the engine's own timestamps
        self._client_awake_ns = self._frontend_ns = self._start_ns
        self._inbox: ReceivingThread[Request] = ReceivingThread(replica.lock)
        self._outbox: deque[tuple[int, Sequence[RequestOutput]]] = deque()  # of the engine: (made, outputs)

    def serve(self, requests: Sequence[Request], workload: Workload) -> list[RequestRecord]:
        """Run until every request has finished; returns records in the order of ``requests``."""
        records = [RequestRecord(float(arrival)) for arrival in workload.arrival_s]
        turns = Turns(workload)
        arrivals = [self._arrival(records, index) for index in turns.first]  # a heap
        heapq.heapify(arrivals)
        unfinished = len(requests)
        while unfinished:
            arrival_ns = self._client_ns(arrivals[0]) if arrivals else None
            output_ns = self._output_sent_ns()
            frontend_ns = min(
                (max(self._frontend_ns, ns) for ns in (arrival_ns, output_ns) if ns is not None), default=None
            )
            engine_ns = self._engine_ready_ns()
            if frontend_ns is not None and (engine_ns is None or frontend_ns <= engine_ns):
                if output_ns is not None and (arrival_ns is None or output_ns <= arrival_ns):
                    made_ns, outputs = self._outbox.popleft()
                    for index in self._deliver(made_ns, output_ns, outputs, records):
                        unfinished -= 1
                        if (turn := turns.after(index)) is not None:
                            records[turn.index].arrival_s = records[index].token_times_s[-1] + turn.think_s
                            heapq.heappush(arrivals, self._arrival(records, turn.index))
                else:
                    arrival = heapq.heappop(arrivals)
                    self._client_awake_ns = self._client_ns(arrival)
                    self._submit(frontend_ns, requests[arrival.request], records[arrival.request])
            elif engine_ns is not None:
                outputs = self._step(engine_ns)
                if outputs:
                    self._outbox.append((self._core.now_ns(), outputs))
            else:
                raise RuntimeError(f"{unfinished} requests never finish: the engine is idle")
        return records

    def _arrival(self, records: Sequence[RequestRecord], index: int) -> _Arrival:
        return _Arrival(self._to_ns(records[index].arrival_s), index, self._cost("arrival", IDLE_STEP))

    def _client_ns(self, arrival: _Arrival) -> int:
        """When the client comes to send the request that arrives next.

        It sleeps until a request arrives, as exactly as its timers are, and sends what has arrived meanwhile.
        """
        if arrival.at_ns <= self._client_awake_ns:
            return self._client_awake_ns
        return max(self._client_awake_ns, arrival.at_ns + arrival.lateness_ns)

    def _engine_ready_ns(self) -> int | None:
        if self._replica.has_work():
            return self._core.now_ns()
        there_ns = self._inbox.next_ns()
        return None if there_ns is None else max(self._core.now_ns(), there_ns)

    def _output_sent_ns(self) -> int | None:
        """When the next outputs leave the engine; None while its main thread keeps their sender from it."""
        return self._replica.lock.done_ns(self._outbox[0][0], 0) if self._outbox else None

    def _step(self, ready_ns: int) -> Sequence[RequestOutput]:
        self._core.set_ns(ready_ns)
        while (there_ns := self._inbox.next_ns()) is not None and there_ns <= self._core.now_ns():
            self._replica.add(self._inbox.take())
        return self._replica.step()

    def _submit(self, now_ns: int, request: Request, record: RequestRecord) -> None:
        back_to_back = now_ns == self._frontend_ns
        call = message_shape(back_to_back, len(request.prompt_token_ids))
        self._frontend_ns = now_ns + self._cost("frontend_submit", call)
        record.submitted_s = self._to_s(self._frontend_ns)
        busy = self._replica.has_work() or bool(self._inbox)
        message = message_shape(busy, len(request.prompt_token_ids))
        costs_ns = self._cost("ipc", message), self._cost("unpack", message)
        self._inbox.send(request, self._frontend_ns, *costs_ns)

    def _deliver(
        self, made_ns: int, sent_ns: int, outputs: Sequence[RequestOutput], records: list[RequestRecord]
    ) -> list[int]:
        """Hand a step's tokens to their clients; returns which requests finished."""
        batch = StepShape(num_reqs=len(outputs))
        # A later message waits for the frontend to finish with this one.
        self._frontend_ns = max(self._frontend_ns, sent_ns + self._cost("output_ipc", batch))
        finished = []
        for start in range(0, len(outputs), _OUTPUT_CHUNK):
            chunk = outputs[start : start + _OUTPUT_CHUNK]
            self._frontend_ns += self._cost("frontend_busy", StepShape(num_reqs=len(chunk)))
            finished += [
                output.index for output in chunk if self._record(output, records[output.index], made_ns)
            ]
        return finished

    def _record(self, output: RequestOutput, record: RequestRecord, made_ns: int) -> bool:
        if output.new_tokens and not record.token_times_s:
            record.engine_first_token_s = self._to_s(made_ns)
        record.token_times_s.extend([self._to_s(self._frontend_ns)] * output.new_tokens)
        if output.cached_tokens is not None:
            record.cached_tokens = output.cached_tokens
        if output.queued_s is not None:
            record.queued_s = seconds_since(self._start_monotonic_s, output.queued_s)
        if output.scheduled_s is not None:
            record.scheduled_s = seconds_since(self._start_monotonic_s, output.scheduled_s)
        if output.finished:
            record.engine_last_token_s = self._to_s(made_ns)
        return output.finished

    def _cost(self, phase: str, step: StepShape) -> int:
        cost = self._costs.phase_ns(phase, step)
        assert cost is not None, f"{phase} has no cost without running it"
        return cost

    def _to_ns(self, seconds: float) -> int:
        return self._start_ns + int(seconds * NS_PER_S)

    def _to_s(self, ns: int) -> float:
        return (ns - self._start_ns) / NS_PER_S
