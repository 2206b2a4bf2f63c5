"""How SGLang is started under emulation: environment, arguments, and the same for a real launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revati import environments
from revati.engines.options import options
from revati.spec import DeploymentSpec

# What the emulated deployment assumes of a real one; belongs into the launch command.
# The second version of SGLang's all-reduce is built on symmetric memory, which nobody has measured yet.
DEPLOYMENT_ENVIRONMENT = {"SGLANG_OPT_USE_CUSTOM_ALL_REDUCE_V2": "0"}

# Only for running without a GPU and a network.
EMULATION_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "SGLANG_SKIP_P2P_CHECK": "1",
    "SGLANG_PLUGINS": "none",  # logs of real engines
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def process_environment() -> dict[str, str]:
    """Variables of a process that runs the engine by itself."""
    return {**DEPLOYMENT_ENVIRONMENT, **EMULATION_ENVIRONMENT, **toolkit_environment()}


def toolkit_environment() -> dict[str, str]:
    """Variables by which SGLang compiles a few kernels with the nvcc of its environment."""
    return {
        "CUDA_HOME": str(environments.cuda_home("sglang")),
        "TVM_FFI_CACHE_DIR": str(environments.cache_dir() / "tvm-ffi"),
    }


def server_arguments(spec: DeploymentSpec, model_folder: Path) -> dict[str, Any]:
    """Keyword arguments of ``sglang.srt.server_args.ServerArgs`` for one replica."""
    return {
        "model_path": str(model_folder),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "tp_size": spec.tensor_parallel_size,
        "pp_size": spec.pipeline_parallel_size,
        "random_seed": spec.seed,
        "log_level": "info",
        **spec.engine_args,
    }


def text_config(settings: Any) -> Any:
    """Configuration of the model that these ``ServerArgs`` name."""
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig.from_server_args(settings).hf_text_config


def serve_command(spec: DeploymentSpec, model: str) -> list[str]:
    """The words of the command that serves ``model``: one replica."""
    arguments: dict[str, Any] = {
        "tp_size": spec.tensor_parallel_size,
        "dtype": spec.model.dtype,
        **spec.engine_args,
    }
    if spec.pipeline_parallel_size > 1:
        arguments["pp_size"] = spec.pipeline_parallel_size
    return ["python", "-m", "sglang.launch_server", "--model-path", model, *options(arguments)]
