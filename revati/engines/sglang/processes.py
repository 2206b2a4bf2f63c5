"""Unmodified SGLang processes under emulation: what each charges to its clock, and what it samples.

An `sglang.srt.plugins` plug-in.  It does nothing unless the process belongs to an emulated deployment
(`revati.engines.emulation`).  Outside of a virtual-time domain nothing is charged.
"""

from __future__ import annotations

from typing import Any

from revati.engines.emulation import Emulation
from revati.engines.process import EmulatedProcess
from revati.engines.sglang.settings import text_config
from revati.virtual_time.host_table import name_for

PLUGIN = "revati_processes"  # its name among the entry points


class SglangProcess(EmulatedProcess):
    """A process of SGLang's."""

    def know(self, settings: Any, stage: int = 0) -> None:
        """Charge the host costs of an engine with these ``ServerArgs``, or of a stage of it, from now on."""
        self.charge_costs(
            name_for(self.emulation.host.name, "sglang"),
            text_config(settings).num_hidden_layers,
            settings.tp_size,
            settings.pp_size,
            settings.random_seed,
            stage,
        )


def register() -> None:
    """Prepare SGLang's classes in this process (the plug-in's entry point)."""
    emulation = Emulation.of_process()
    if emulation is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from revati.engines.sglang import frontend_process, scheduler_process, stage_process
    from revati.engines.sglang.fold import use_emulated_cuda_runtime
    from revati.engines.sglang.kernels import use_measured_norms

    process = SglangProcess(emulation)
    use_measured_norms()
    use_emulated_cuda_runtime()
    for module in (scheduler_process, stage_process, frontend_process):
        for target, hook in module.hooks(process).items():
            HookRegistry.register(target, hook, HookType.AROUND)
