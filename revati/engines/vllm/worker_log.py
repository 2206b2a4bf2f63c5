"""A log of vLLM's workers: host times of each rank's calls, and GPU memory at each stage of the start.

A `vllm.general_plugins` plug-in, enabled like the step log (REVATI_STEP_LOG). `write_worker_log(folder)`
is then a worker method: `collective_rpc("write_worker_log", args=(folder,))` has every rank write
worker_<rank>.parquet (one row a call of execute_model, CLOCK_MONOTONIC seconds) and memory_<rank>.json
(bytes).
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.engines.vllm.step_log import ENABLE_VARIABLE, page_faults

STAGES = (
    "init_device",
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
)
PROFILED = (
    "model_memory_usage",
    "non_torch_memory",
    "peak_activation_memory",
    "cudagraph_memory_estimate",
    "available_kv_cache_memory_bytes",
    "requested_memory",
)
now = time.monotonic


def register() -> None:
    """Make every GPU worker of this process keep a log (the plug-in's entry point)."""
    if not os.environ.get(ENABLE_VARIABLE):
        return
    from vllm.v1.worker.gpu_worker import Worker

    if hasattr(Worker, "write_worker_log"):
        return
    for stage in STAGES:
        setattr(Worker, stage, _staged(stage, getattr(Worker, stage)))
    Worker.execute_model = _timed_execute(Worker.execute_model)
    Worker.sample_tokens = _timed_sample(Worker.sample_tokens)
    Worker.write_worker_log = write_worker_log


def write_worker_log(self: Any, folder: str) -> int:
    """Write this rank's log into a folder, forget its rows, return how many there were."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = self.__dict__.pop("_revati_rows", [])
    pq.write_table(pa.Table.from_pylist(rows), path / f"worker_{self.rank}.parquet")
    (path / f"memory_{self.rank}.json").write_text(json.dumps(self.__dict__.get("_revati_memory"), indent=1))
    return len(rows)


def gpu_memory() -> dict[str, int]:
    """Return the device's free and total bytes and what PyTorch reserved and allocated of it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    return {
        "free": free,
        "total": total,
        "torch_reserved": torch.cuda.memory_reserved(),
        "torch_allocated": torch.cuda.memory_allocated(),
        "torch_peak_allocated": stats.get("allocated_bytes.all.peak", 0),
        "torch_peak_reserved": stats.get("reserved_bytes.all.peak", 0),
    }


def _staged(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = method(self, *args, **kwargs)
        entry: dict[str, Any] = gpu_memory() | {"took_s": now() - begin}
        for name in PROFILED:
            value = getattr(self, name, getattr(getattr(self, "model_runner", None), name, None))
            if isinstance(value, int | float):
                entry[name] = int(value)
        if stage == "init_device":
            entry["snapshot"] = repr(self.init_snapshot)
        if stage == "determine_available_memory":
            entry["returned"] = int(result)
        self.__dict__.setdefault("_revati_memory", {})[stage] = entry
        return result

    return recorded


def _timed_execute(method: Callable[..., Any]) -> Callable[..., Any]:
    def timed(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        faults = page_faults()
        row = {
            "execute_begin_s": now(),
            "execute_end_s": 0.0,
            "sample_begin_s": 0.0,
            "sample_end_s": 0.0,
            "execute_faults": 0,
            "scheduled_tokens": scheduler_output.total_num_scheduled_tokens,
            "scheduled_requests": len(scheduler_output.num_scheduled_tokens),
            "most_tokens": max(scheduler_output.num_scheduled_tokens.values(), default=0),
        }
        self.__dict__.setdefault("_revati_rows", []).append(row)
        result = method(self, scheduler_output, *args, **kwargs)
        row["execute_end_s"] = now()
        row["execute_faults"] = page_faults() - faults
        return result

    return timed


def _timed_sample(method: Callable[..., Any]) -> Callable[..., Any]:
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = now()
        result = method(self, *args, **kwargs)
        if rows := self.__dict__.get("_revati_rows"):
            rows[-1]["sample_begin_s"], rows[-1]["sample_end_s"] = begin, now()
        return result

    return timed
