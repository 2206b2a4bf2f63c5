"""The commands that serve a recommended deployment for real."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import Any

from revati.deployment.routers import POLICIES, router_arguments
from revati.spec import DeploymentSpec

_FIRST_PORT = 8001  # of the replicas behind a router
_ENTRY_PORT = 8000


def launch_script(spec: DeploymentSpec, served: str, environment: Mapping[str, str]) -> str:
    """A shell script that starts the deployment; further arguments are passed on to its servers.

    Args:
        served: what the engine loads: a Hugging Face id or a folder with the weights.
        environment: variables that the emulation assumed.
    """
    policy = POLICIES.get(spec.routing)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    head = [
        "#!/bin/sh",
        f"# Recommended by Revati: {spec.model.name} on {spec.num_gpus} x {spec.gpu}.",
        "# Weights, tokenizer and access to them are yours to have.",
        *([f"# The router: pip install {policy.router.package}=={policy.router.version}"] if policy else []),
        *exports,
    ]
    first, *others = commands(spec, served)
    if not others:
        return "\n".join([*head, f'exec {_lines(first)} \\\n  "$@"']) + "\n"
    *servers, entry = [first, *others]
    started = [f'{_lines(server)} \\\n  "$@" &\nservers="$servers $!"' for server in servers]
    return (
        "\n".join([*head, "trap 'kill $servers' EXIT", "trap exit INT TERM", *started, _lines(entry)]) + "\n"
    )


def deployment_environment(engine: str) -> dict[str, str]:
    """The variables that the engine's emulation assumes of a real deployment."""
    return dict(_settings(engine).DEPLOYMENT_ENVIRONMENT)


def commands(spec: DeploymentSpec, served: str) -> list[str]:
    """A command for each server, then the router's if there is one; a line each, quoted for a shell.

    The servers' GPUs are numbered as if one machine had them all.
    """
    server: list[str] = _settings(spec.engine).serve_command(spec, served)
    if spec.routing not in POLICIES:
        return [shlex.join(server)]
    gpus = spec.gpus_per_replica
    ports = range(_FIRST_PORT, _FIRST_PORT + spec.replicas)
    lines = []
    for number, port in enumerate(ports):
        visible = ",".join(map(str, range(number * gpus, (number + 1) * gpus)))
        lines.append(f"CUDA_VISIBLE_DEVICES={visible} {shlex.join([*server, '--port', str(port)])}")
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    router = router_arguments(spec.routing, urls, "0.0.0.0", _ENTRY_PORT)
    return [*lines, shlex.join(["python", *router])]


def _settings(engine: str) -> Any:
    return importlib.import_module(f"revati.engines.{engine}.settings")


def _lines(command: str) -> str:
    """The command with a line for each option."""
    return command.replace(" --", " \\\n  --")
