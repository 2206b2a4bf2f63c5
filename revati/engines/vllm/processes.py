"""Unmodified vLLM processes under emulation: what each charges to its clock, and what a worker samples.

A `vllm.general_plugins` plug-in.  It does nothing unless the process belongs to an emulated deployment
(`revati.engines.emulation`).  Outside of a virtual-time domain nothing is charged.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from revati.engines.common import host_costs
from revati.engines.emulation import Emulation
from revati.engines.refusals import tell_refusal
from revati.interception.core import NativeCore
from revati.virtual_time.host import FreeHost, HostCosts, HostMeter

SENT_AT = "_revati_sent_ns"  # of a message from the core to its workers


class EmulatedProcess:
    """The clock and the host costs of this process."""

    def __init__(self, emulation: Emulation) -> None:
        self.emulation = emulation
        self.core = NativeCore()
        self.meter = HostMeter(self.core, keep_records=False)

    def know(self, vllm_config: Any, stage: int = 0) -> None:
        """Charge the host costs of this engine, or of a pipeline stage of it, from now on."""
        self.meter.set_costs(_host_costs(self.emulation, vllm_config, stage))


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

    process = EngineCore._revati = EmulatedProcess(emulation)
    EngineArgs.create_engine_config = telling_refusals(EngineArgs.create_engine_config)
    worker_process.prepare(process)
    core_process.prepare(process)
    frontend_process.prepare(process)


def telling_refusals(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method``, whose refusal is told (see `revati.engines.refusals`)."""
    import torch

    @functools.wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (ValueError, torch.OutOfMemoryError) as error:  # vLLM's own refusals are ValueErrors
            tell_refusal(f"{type(error).__name__}: {error}")
            raise

    return told


def _host_costs(emulation: Emulation, vllm_config: Any, stage: int) -> HostCosts:
    if "REVATI_DOMAIN" not in os.environ:
        return FreeHost()
    parallel = vllm_config.parallel_config
    return host_costs(
        emulation.host,
        emulation.host.name,
        vllm_config.model_config.get_total_num_hidden_layers(),
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        vllm_config.model_config.seed,
        stage,
    )
