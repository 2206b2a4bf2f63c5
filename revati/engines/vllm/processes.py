"""Unmodified vLLM processes under emulation: what each charges to its clock, and what a worker samples.

A `vllm.general_plugins` plug-in.  It does nothing unless the process belongs to an emulated deployment
(`revati.engines.emulation`).  Outside of a virtual-time domain nothing is charged.
"""

from __future__ import annotations

from typing import Any

from revati.engines.emulation import Emulation
from revati.engines.process import EmulatedProcess
from revati.engines.refusals import telling_refusals
from revati.virtual_time.interpreter_lock import InterpreterLock

SENT_AT = "_revati_sent_ns"  # of a message from the core to its workers


class VllmProcess(EmulatedProcess):
    """A process of vLLM's."""

    def __init__(self, emulation: Emulation) -> None:
        super().__init__(emulation)
        self.lock = InterpreterLock()  # of an engine core's process

    def know(self, vllm_config: Any, stage: int = 0) -> None:
        """Charge the host costs of this engine, or of a pipeline stage of it, from now on."""
        parallel = vllm_config.parallel_config
        self.charge_costs(
            self.emulation.host.name,
            vllm_config.model_config.get_total_num_hidden_layers(),
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            vllm_config.model_config.seed,
            stage,
        )


def register() -> None:
    """Prepare vLLM's classes in this process (the plug-in's entry point)."""
    emulation = Emulation.of_process()
    if emulation is None:
        return
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore, "_revati"):
        return
    from revati.engines.vllm import core_process, frontend_process, worker_process

    process = EngineCore._revati = VllmProcess(emulation)
    EngineArgs.create_engine_config = telling_refusals(EngineArgs.create_engine_config)
    worker_process.prepare(process)
    core_process.prepare(process)
    frontend_process.prepare(process)
