"""How vLLM is started under emulation: environment, arguments, and the same for a real launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revati.engines.options import options
from revati.spec import DATA_PARALLEL, DeploymentSpec

# What the emulated deployment assumes of a real one; belongs into the launch command.
# Symmetric-memory collectives need NVLink multicast, and no kernel of FlashInfer has been measured yet.
DEPLOYMENT_ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}

# Only for running without a GPU and a network.
EMULATION_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SKIP_P2P_CHECK": "1",
    "VLLM_DEEP_GEMM_WARMUP": "skip",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

# Only for an engine that runs as its own processes.  A forked engine core has its imports already.
SERVED_ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}

# Only for an engine that one process runs.
IN_PROCESS_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def engine_arguments(spec: DeploymentSpec, model_folder: Path) -> dict[str, Any]:
    """Keyword arguments of `vllm.EngineArgs` for one replica."""
    return {
        "model": str(model_folder),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "seed": spec.seed,
        **spec.engine_args,
    }


def serve_command(spec: DeploymentSpec, model: str) -> list[str]:
    """The words of the command that serves ``model``: one replica, or all where vLLM itself balances them."""
    arguments: dict[str, Any] = {
        "tensor_parallel_size": spec.tensor_parallel_size,
        "dtype": spec.model.dtype,
        **spec.engine_args,
    }
    if spec.pipeline_parallel_size > 1:
        arguments["pipeline_parallel_size"] = spec.pipeline_parallel_size
    if spec.routing == DATA_PARALLEL:
        arguments["data_parallel_size"] = spec.replicas
    return ["vllm", "serve", model, *options(arguments, off="no-")]
