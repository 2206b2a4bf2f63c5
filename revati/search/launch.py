"""The command that serves a recommended deployment for real."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import Any

from revati.spec import DeploymentSpec


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
    if spec.engine != "vllm" or spec.replicas > 1:
        raise NotImplementedError(f"no launch command for {spec.replicas} replicas of {spec.engine}")
    arguments: dict[str, Any] = {
        "tensor_parallel_size": spec.tensor_parallel_size,
        "dtype": spec.model.dtype,
        **spec.engine_args,
    }
    if spec.pipeline_parallel_size > 1:
        arguments["pipeline_parallel_size"] = spec.pipeline_parallel_size
    return [f"vllm serve {shlex.quote(served)}", *(_option(name, value) for name, value in arguments.items())]


def _option(name: str, value: Any) -> str:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed} {shlex.quote(str(value))}"
