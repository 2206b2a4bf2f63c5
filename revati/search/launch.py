"""The command that serves a recommended deployment for real."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import Any

from revati.spec import DeploymentSpec

# By engine: the server's command, and its names for the parallel sizes.
_SERVERS = {
    "sglang": ("python -m sglang.launch_server --model-path {}", "tp_size", "pp_size"),
    "vllm": ("vllm serve {}", "tensor_parallel_size", "pipeline_parallel_size"),
}


def launch_script(spec: DeploymentSpec, served: str, environment: Mapping[str, str]) -> str:
    """A shell script that starts the deployment; further arguments are passed on.

    Args:
        served: what the engine loads: a Hugging Face id or a folder with the weights.
        environment: variables that the emulation assumed.
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    lines = [
        "#!/bin/sh",
        f"# Recommended by Revati: {spec.model.name} on {spec.num_gpus} x {spec.gpu}.",
        "# Weights, tokenizer and access to them are yours to have.",
        *exports,
        "exec " + " \\\n  ".join([*command(spec, served), '"$@"']),
    ]
    return "\n".join(lines) + "\n"


def deployment_environment(engine: str) -> dict[str, str]:
    """The variables that the engine's emulation assumes of a real deployment."""
    settings: Any = importlib.import_module(f"revati.engines.{engine}.settings")
    return dict(settings.DEPLOYMENT_ENVIRONMENT)


def command(spec: DeploymentSpec, served: str) -> list[str]:
    """The command, an element a shell word or an option with its value; quoted for a shell.

    Raises:
        NotImplementedError: an engine, or more than one replica, that there is no command for.
    """
    if spec.engine not in _SERVERS or spec.replicas > 1:
        raise NotImplementedError(f"no launch command for {spec.replicas} replicas of {spec.engine}")
    program, tensor_parallel, pipeline_parallel = _SERVERS[spec.engine]
    arguments: dict[str, Any] = {
        tensor_parallel: spec.tensor_parallel_size,
        "dtype": spec.model.dtype,
        **spec.engine_args,
    }
    if spec.pipeline_parallel_size > 1:
        arguments[pipeline_parallel] = spec.pipeline_parallel_size
    options = (_option(spec.engine, name, value) for name, value in arguments.items())
    return [program.format(shlex.quote(served)), *filter(None, options)]


def _option(engine: str, name: str, value: Any) -> str:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        if engine == "sglang":  # its switches are only on
            return f"--{dashed}" if value else ""
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed} {shlex.quote(str(value))}"
