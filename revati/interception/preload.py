"""The environment that puts a program on emulated GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import revati.interception
from revati.environments import cache_dir
from revati.interception.gpu import GpuDescription

# Where an engine's own Python environment finds the libraries of this one.
LIBRARY_VARIABLE = "REVATI_LIBRARY_DIR"


def _library_dir() -> Path:
    if named := os.environ.get(LIBRARY_VARIABLE):
        return Path(named)
    # An editable install keeps Python files in the checkout and built libraries in site-packages.
    folders = [Path(folder) / "lib" for folder in revati.interception.__path__]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


LIBRARY_DIR = _library_dir()
CORE_LIBRARY = LIBRARY_DIR / "librevati.so"
CUDA_RUNTIME = LIBRARY_DIR / "libcudart.so.13"
TIMING_LIBRARY = LIBRARY_DIR / "librevati_timing.so"  # loaded, not preloaded
STAND_INS = (
    CORE_LIBRARY.name,
    "libcuda.so.1",
    CUDA_RUNTIME.name,
    "libnvidia-ml.so.1",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libnccl.so.2",
)
PTXAS = "ptxas"  # a program


def _compile_caches() -> dict[str, str]:
    """Where emulated processes keep what they compile: apart, since a real GPU could not run it."""
    folders = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {name: str(cache_dir() / "compiled" / folder) for name, folder in folders.items()}


def emulated_environment(gpu: GpuDescription, num_gpus: int, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` plus what makes a child process see ``num_gpus`` GPUs.

    Raises:
        FileNotFoundError: if the native library was not built with the package.
        ValueError: if one node cannot hold so many of these GPUs.
    """
    if not 1 <= num_gpus <= gpu.max_gpus_per_node:
        raise ValueError(f"num_gpus={num_gpus}: a node of {gpu.name} has 1 to {gpu.max_gpus_per_node}")
    missing = [name for name in (*STAND_INS, PTXAS) if not (LIBRARY_DIR / name).is_file()]
    if missing:
        raise FileNotFoundError(f"native stand-ins {missing} are not in {LIBRARY_DIR}: reinstall revati")
    environment = dict(base)
    preload = [str(LIBRARY_DIR / name) for name in STAND_INS]
    if inherited := base.get("LD_PRELOAD"):
        preload.append(inherited)
    environment["LD_PRELOAD"] = os.pathsep.join(preload)
    environment[LIBRARY_VARIABLE] = str(LIBRARY_DIR)
    environment["REVATI_GPU"] = gpu.to_environment(num_gpus)
    environment["TRITON_LIBCUDA_PATH"] = str(LIBRARY_DIR)
    for assembler in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        environment[assembler] = str(LIBRARY_DIR / PTXAS)
    environment |= _compile_caches()
    # Each process that imports humming (vLLM does) compiles C++ in the background, for a minute and in vain.
    environment["HUMMING_DISABLE_PARALLEL_BUILD"] = "1"
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment
