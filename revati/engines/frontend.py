"""The frontend (API server) of an engine that runs as its own processes."""

from __future__ import annotations

from typing import Any

from revati.engines.process import EmulatedProcess
from revati.virtual_time.host import StepShape, message_shape

_BACK_TO_BACK_NS = 20_000  # a frontend that was busy until now


class EmulatedFrontend:
    """Charges the event loop's thread of one frontend."""

    def __init__(self, process: EmulatedProcess) -> None:
        self._core, self._meter = process.core, process.meter
        self._free_at_ns = 0

    def submit(self, num_prompt_tokens: int) -> None:
        busy = self._core.now_ns() - self._free_at_ns < _BACK_TO_BACK_NS
        self._charge("frontend_submit", message_shape(busy, num_prompt_tokens))

    def deliver(self, num_outputs: int) -> None:
        self._charge("frontend_busy", StepShape(num_reqs=num_outputs))

    def _charge(self, phase: Any, shape: StepShape) -> None:
        self._meter.charge(phase, shape)
        self._free_at_ns = self._core.now_ns()
