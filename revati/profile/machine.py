"""Where a measurement ran: CPU, GPU, engine and settings."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any


def describe(config: Any, start_s: float) -> dict[str, Any]:
    """Say where and with what an engine runs."""
    import torch
    import vllm

    cache, scheduler = config.cache_config, config.scheduler_config
    return {
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "gpu": gpu_query("name,driver_version,memory.total,memory.used,memory.reserved"),
        "recorded_at": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("VLLM_")},
        "engine_start_s": start_s,
        "num_layers": config.model_config.hf_config.num_hidden_layers,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "resolved": {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "async_scheduling": scheduler.async_scheduling,
            "num_gpu_blocks": cache.num_gpu_blocks,
            "block_size": cache.block_size,
            "enable_prefix_caching": cache.enable_prefix_caching,
            "policy": scheduler.policy,
            "enable_chunked_prefill": scheduler.enable_chunked_prefill,
            "gpu_memory_utilization": cache.gpu_memory_utilization,
            "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
            "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
        },
    }


def cpu_name() -> str:
    """The CPU as /proc/cpuinfo names it."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return f"{fields.get('model name', '?')} (family {fields.get('cpu family')} model {fields.get('model')})"


def gpu_query(fields: str) -> list[str]:
    """nvidia-smi's answer, a line a GPU, empty where there is none."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[:-1]


def memory_of_a_context(out: Path) -> None:
    """Write what a bare CUDA context, PyTorch's first kernels and a GEMM take of the GPU's memory."""
    facts: dict[str, Any] = {
        "before_context": gpu_query("memory.total,memory.used,memory.free,memory.reserved")
    }
    import torch

    def record(name: str) -> None:
        free, total = torch.cuda.mem_get_info()
        facts[name] = {"free": free, "total": total, "torch_reserved": torch.cuda.memory_reserved()}

    torch.cuda.init()
    torch.cuda.set_device(0)
    record("after_context")
    tensor = torch.empty(1, device="cuda")
    record("after_first_allocation")
    tensor.fill_(1)
    torch.cuda.synchronize()
    record("after_first_kernel")
    matrix = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    matrix @ matrix
    torch.cuda.synchronize()
    record("after_first_gemm")
    out.mkdir(parents=True, exist_ok=True)
    (out / "context_memory.json").write_text(json.dumps(facts, indent=1))
