"""Kernel scenes of SGLang: what the GPU and CUDA's API do during a few steps, from PyTorch's profiler.

An `sglang.srt.plugins` plug-in, enabled like the step log (REVATI_STEP_LOG).  It gives the scheduler the
methods ``start_scene()`` and ``stop_scene(path)``, called through ``Engine.collective_rpc``; `read_scene`
of `revati.profile.scenes` reads what they leave.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revati.engines.sglang.batch import lengths_of
from revati.engines.sglang.step_log import ENABLE_VARIABLE
from revati.profile.scenes import STEP_MARK

_FORWARD = "sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation"


def register() -> None:
    """Give this process's scheduler the methods that record scenes (the plug-in's entry point)."""
    if not os.environ.get(ENABLE_VARIABLE):
        return
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    recorder = SceneRecorder()
    HookRegistry.register(_FORWARD, recorder.forward, HookType.AROUND)
    # Functions, since a bound method in a class would not receive the scheduler.
    Scheduler.start_scene = lambda scheduler: recorder.start()
    Scheduler.stop_scene = lambda scheduler, path: recorder.stop(scheduler, path)


class SceneRecorder:
    """Traces the forward passes of one rank; all ranks together tell how long a reduction waits."""

    def __init__(self) -> None:
        self._profile: Any = None
        self._steps: list[dict[str, Any]] = []

    def start(self) -> None:
        """Start to trace kernels, and to note each step's query and context lengths."""
        import torch

        self._steps = []
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        )
        self._profile.start()

    def stop(self, scheduler: Any, path: str) -> None:
        """Write <path>_tp<rank>_pp<rank>.trace.json and .steps.json."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        stem = f"{path}_tp{scheduler.ps.tp_rank}_pp{scheduler.ps.pp_rank}"
        Path(stem).parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(f"{stem}.trace.json")
        Path(f"{stem}.steps.json").write_text(json.dumps(self._steps))

    def forward(
        self, original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Mark a forward pass in the trace (an AROUND hook)."""
        if self._profile is None:
            return original(worker, batch, *args, **kwargs)
        import torch

        lengths = lengths_of(batch)
        self._steps.append(
            {
                "query_lens": lengths.query_lens,
                "context_lens": lengths.context_lens,
                "mode": batch.forward_mode.name,
            }
        )
        with torch.profiler.record_function(f"{STEP_MARK} {len(self._steps) - 1}"):
            return original(worker, batch, *args, **kwargs)
