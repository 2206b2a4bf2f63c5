"""What a phase of an engine step costs on the target's host: from a table, measured here, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from revati.interception.core import NativeCore
from revati.virtual_time.cores import VirtualCore
from revati.virtual_time.host_table import PHASES, ChunkCosts, HostTable
from revati.virtual_time.spread import CommonDraws, PhaseDraws

CorePhase = Literal[
    "input", "broadcast", "schedule", "dispatch", "dispatch_sample", "wake", "collect", "update", "output"
]
WorkerPhase = Literal[
    "worker_unpack", "execute", "executed", "send", "sample", "receive", "sampled", "worker_ipc"
]
StagePhase = Literal["requests_receive", "requests_send", "hidden_receive", "tokens_send"]
Phase = CorePhase | WorkerPhase | StagePhase
FrontendPhase = Literal["arrival", "frontend_submit", "ipc", "unpack", "output_ipc", "frontend_busy"]
StepKind = Literal["full", "piecewise", "compiled", "eager", "idle", "busy"]

_PHASES: tuple[Phase, ...] = (*get_args(CorePhase), *get_args(WorkerPhase), *get_args(StagePhase))
_KINDS: tuple[StepKind, ...] = get_args(StepKind)
WORKER_PHASES = ("execute", "sample")  # of one stage's ranks; all others concern all workers
# What every step has once, of the engine core and of a worker: these vary together (see `CommonDraws`).
_CORE_STEP = ("schedule", "dispatch", "dispatch_sample", "update", "output")
_WORKER_STEP = ("execute", "executed", "send", "sample", "receive", "sampled")
_MEASURABLE = ("schedule", "execute", "sample", "receive", "update")  # those that run engine code here


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a host table needs to know of an engine step or message.

    ``kind``: how the model runs in a step; for messages, whether the receiver is idle or busy.
    ``num_tokens``: prompt tokens that the step computes, for ``num_prefills`` of its ``num_reqs`` requests.
    ``frame_chunks``: how many chunks of Python's frame stack its launches begin.
    """

    kind: StepKind = "idle"
    num_reqs: int = 0
    num_tokens: int = 0
    num_prefills: int = 0
    frame_chunks: int = 0


IDLE_STEP = StepShape()


def message_shape(busy: bool, num_prompt_tokens: int) -> StepShape:
    """A request on its way to somebody who is busy with others, or idle."""
    return StepShape("busy" if busy else "idle", num_tokens=num_prompt_tokens)


class HostCosts(Protocol):
    """Cost of a host phase in ns, or None where only running it tells."""

    @property
    def frame_chunks(self) -> ChunkCosts | None:
        """None: what they cost is a part of the phases."""

    def phase_ns(self, phase: str, step: StepShape) -> int | None: ...


class FreeHost:
    """Charges nothing."""

    frame_chunks = None

    def phase_ns(self, phase: str, step: StepShape) -> int | None:
        return 0


class TableHost:
    """A host table measured on the target.

    Phases vary as they did there: each time costs what the table says times a draw from the phase's spread.
    What phases of one process have in common goes by the number of the step, so that it does not matter
    which processes of this machine run them, and ranks that run the same phases agree: the table's costs are
    those of the slowest rank.

    Args:
        table: the table.
        num_layers: decoder layers that one worker runs.
        tp: tensor-parallel ranks; a step ends with the slowest one.
        pp: pipeline stages.
        seed: of the draws; None: no spread.  Of what phases have in common, an odd seed draws the opposite of
            the even one before it: a run of a minute has few slow seconds, and two such runs have no bias.
        stage: whose costs these are, where each pipeline stage has its own; no two draw the same.
    """

    def __init__(
        self, table: HostTable, num_layers: int, tp: int, pp: int = 1, seed: int | None = None, stage: int = 0
    ) -> None:
        self._table, self._num_layers, self._tp = table, num_layers, tp
        self.frame_chunks = table.frame_chunks
        self._schedulers_tp = tp if table.own_schedulers else tp * pp
        pair, odd = divmod(seed or 0, 2)
        core = CommonDraws(f"{pair} {stage} core", table.in_common, opposite=odd == 1)
        apart = table.has_worker_processes and tp * pp > 1
        worker = CommonDraws(f"{pair} {stage} worker", table.in_common, opposite=odd == 1) if apart else core
        common = dict.fromkeys(_CORE_STEP, core) | dict.fromkeys(_WORKER_STEP, worker)
        self._draws = {phase: PhaseDraws(f"{seed} {stage} {phase}", common.get(phase)) for phase in PHASES}
        self._varies = seed is not None

    def phase_ns(self, phase: str, step: StepShape) -> int | None:
        cost_us = self._table.phase_us(
            phase,
            step.kind,
            step.num_reqs,
            step.num_tokens,
            step.num_prefills,
            self._num_layers,
            self._tp if phase in WORKER_PHASES else self._schedulers_tp,
        )
        if self.frame_chunks is not None:
            cost_us += step.frame_chunks * self.frame_chunks.us
        if self._varies:
            cost_us *= self._draws[phase].factor(self._table.spread.get((phase, step.kind)))
        return round(cost_us * 1e3)


class MeasuredHost:
    """Engine phases cost their own CPU time here times a factor; frontend lags come from a table.

    A lag between processes is no CPU time of this one, so it cannot be measured by running it here.

    Args:
        factor: the target core's time for the same work relative to this machine's.
    """

    frame_chunks = None

    def __init__(self, frontend: HostCosts, factor: float) -> None:
        self._frontend = frontend
        self.factor = factor

    def phase_ns(self, phase: str, step: StepShape) -> int | None:
        return None if phase in _MEASURABLE else self._frontend.phase_ns(phase, step)


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """One phase on a virtual core; ``wait`` is the time that it waits for the GPU or a worker."""

    core: str
    phase: str
    begin_ns: int
    end_ns: int
    step: StepShape


class HostMeter:
    """Runs phases on the virtual clock, and keeps a record of them.

    Launches inside a phase see its time pass evenly; see ``clock.cpp``.

    Args:
        keep_records: a server that runs on and on keeps none.
    """

    def __init__(self, core: NativeCore, keep_records: bool = True) -> None:
        self._core, self._keep_records = core, keep_records
        self._last_ns: dict[int, int] = {}
        self._running_on = "engine_core"
        self.records: list[PhaseRecord] = []
        self.excluded_ns = 0  # CPU time of our own inside a phase, such as predictions
        self.set_costs(FreeHost())

    def set_costs(self, costs: HostCosts) -> None:
        """Charge these from now on; an engine starts for free."""
        self.costs = costs
        self._measures = isinstance(costs, MeasuredHost)
        self._factor = costs.factor if isinstance(costs, MeasuredHost) else 0.0

    def cpu_ns(self) -> int:
        """CPU time of this thread, less our own; 0 where nobody asks for it (the reading costs 0.5 µs)."""
        return time.thread_time_ns() - self.excluded_ns if self._measures else 0

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Work of the emulator itself, which no engine on the target would do."""
        begin = self.cpu_ns()
        yield
        self.excluded_ns += self.cpu_ns() - begin

    @contextmanager
    def phase(self, phase: Phase, step: StepShape) -> Iterator[None]:
        """A phase that runs engine code here."""
        tag = _PHASES.index(phase) * len(_KINDS) + _KINDS.index(step.kind)
        cost_ns = self.costs.phase_ns(phase, step)
        begin_ns, begin_cpu_ns = self._core.now_ns(), self.cpu_ns()
        self._core.phase_begin(tag, self._last_ns.get(tag, 0) if cost_ns is None else cost_ns)
        try:
            yield
        finally:
            if cost_ns is None:
                self._last_ns[tag] = int((self.cpu_ns() - begin_cpu_ns) * self._factor)
                self._core.phase_end(self._last_ns[tag])
            else:
                self._core.phase_end(-1)
            self._record(phase, begin_ns, step)

    @contextmanager
    def on(self, core: VirtualCore, not_before_ns: int) -> Iterator[None]:
        """Run phases on another virtual core than the engine core's (see `VirtualCore.on`)."""
        outside, self._running_on = self._running_on, core.name
        try:
            with core.on(not_before_ns):
                yield
        finally:
            self._running_on = outside

    def wait_until(self, ns: int, step: StepShape, phase: Phase | Literal["wait"] = "wait") -> None:
        """Wait for another virtual core, or a message on its way from there, as a part of a phase."""
        begin_ns = self._core.now_ns()
        self._core.wait_until_ns(ns)
        self._record(phase, begin_ns, step)

    def wait(self, ns: int, step: StepShape) -> None:
        """Wait for other threads of this process that compute."""
        if ns:
            self.wait_until(self._core.now_ns() + ns, step)

    @contextmanager
    def waiting(self, step: StepShape) -> Iterator[None]:
        """A wait for the GPU: waking up costs more than finding its outputs there already."""
        begin_ns = self._core.now_ns()
        yield
        waited = self._core.now_ns() > begin_ns
        self._record("wait", begin_ns, step)
        self.charge("wake" if waited else "collect", step)

    def charge(self, phase: Phase | FrontendPhase, step: StepShape, spent_ns: int = 0) -> None:
        """Charge a phase after the fact; ``spent_ns`` is the CPU time it took here, if it ran code."""
        cost_ns = self.costs.phase_ns(phase, step)
        begin_ns = self._core.now_ns()
        self._core.advance_ns(int(spent_ns * self._factor) if cost_ns is None else cost_ns)
        self._record(phase, begin_ns, step)

    def _record(self, phase: str, begin_ns: int, step: StepShape) -> None:
        if self._keep_records:
            self.records.append(PhaseRecord(self._running_on, phase, begin_ns, self._core.now_ns(), step))
