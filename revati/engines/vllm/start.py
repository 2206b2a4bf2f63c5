"""Starts vLLM for emulation (see `revati.engines.warm.EngineModule`)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from revati.engines.base import Http, ServerControl, ServerProgram, StartedServer
from revati.engines.common import cached_model_folder, deployment_costs, import_for_forks, rank_shape
from revati.engines.vllm.http_control import HttpControl
from revati.engines.vllm.memory import Limits
from revati.engines.vllm.settings import (
    DEPLOYMENT_ENVIRONMENT,
    EMULATION_ENVIRONMENT,
    IN_PROCESS_ENVIRONMENT,
    SERVED_ENVIRONMENT,
    serve_command,
)
from revati.engines.warm import WarmEngine
from revati.environments import interpreter
from revati.interception.core import NativeCore
from revati.interception.gpu import load_gpu
from revati.spec import DeploymentSpec, HostSpec
from revati.timing.attach import LaunchPricing
from revati.timing.source import source
from revati.virtual_time.host import HostMeter

STAGES_IN_ONE_PROCESS = True
# vLLM's defaults of an H200 server are within these, and its defaults for offline use at them.
_WIDEST = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
_SERVER_DEFAULTS = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
# Below this, vLLM captures a graph of exactly max_num_batched_tokens, which a wider engine lacks.
_SHARED_MINIMUM_TOKENS = 512
# Set to 0 to start an engine at exactly the limits of each trial: slow, and the same result.
SHARE_VARIABLE = "REVATI_SHARE_ENGINES"


def environment() -> dict[str, str]:
    return {**DEPLOYMENT_ENVIRONMENT, **EMULATION_ENVIRONMENT, **IN_PROCESS_ENVIRONMENT}


def served_environment() -> dict[str, str]:
    return {**DEPLOYMENT_ENVIRONMENT, **EMULATION_ENVIRONMENT, **SERVED_ENVIRONMENT}


def preload() -> None:
    import_for_forks(
        (
            "torch",
            "vllm.v1.engine.core",
            "vllm.v1.worker.gpu_worker",
            "vllm.v1.worker.gpu.model_runner",
            "vllm.model_executor.models.llama",
            "revati.engines.vllm.replica",
        )
    )


def template_key(spec: DeploymentSpec) -> str:
    # A warmed engine knows nothing of the host that its trials assume, nor of what they demand of timings.
    any_host = replace(_template_spec(spec), host=HostSpec("any", "free"), timing_require=None)
    return any_host.engine_key(scheduler_knobs=())


def start(spec: DeploymentSpec) -> WarmEngine:
    from revati.engines.vllm.replica import VllmReplica

    gpu = load_gpu(spec.gpu)
    core = NativeCore()
    core.configure(gpu.to_environment(spec.gpus_per_replica))
    shape = rank_shape(spec.model, spec.tensor_parallel_size)
    timings = source(spec.timing_source).open(spec.gpu, shape)
    eager = spec.engine_args.get("enforce_eager", False)
    pricing = LaunchPricing(core, timings, gpu, "eager" if eager else "graph")
    meter = HostMeter(core)
    pricing.own_time = meter.excluded
    replica = VllmReplica(_template_spec(spec), cached_model_folder(spec.model), core, pricing, meter)
    pricing.refuse_unread()
    return WarmEngine(replica, core, meter, pricing)


def serve(spec: DeploymentSpec, work_dir: Path) -> StartedServer:
    from revati.engines.vllm.server import VllmServer

    return VllmServer(spec, work_dir)


def server_program(spec: DeploymentSpec, model_folder: Path, port: int) -> ServerProgram:
    program, *arguments = serve_command(spec, str(model_folder))
    assert program == "vllm"
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", spec.model.name]
    arguments += ["--load-format", "dummy", "--seed", str(spec.seed)]
    # What is cached of a prompt, and how many tokens each part of an answer has.
    arguments += ["--enable-prompt-tokens-details", "--enable-force-include-usage"]
    command = [str(interpreter("vllm")), "-m", "vllm.entrypoints.cli.main", *arguments]
    # For `HttpControl`.
    return ServerProgram(command, {**served_environment(), "VLLM_SERVER_DEV_MODE": "1"})


def server_control(http: Http) -> ServerControl:
    return HttpControl(http)


def before_fork(warm: WarmEngine, spec: DeploymentSpec) -> None:
    from revati.engines.vllm.replica import VllmReplica

    assert isinstance(warm.replica, VllmReplica)
    warm.replica.executor.memory.available_bytes(Limits(**_limits(spec)))


def prepare(warm: WarmEngine, spec: DeploymentSpec) -> None:
    from revati.engines.vllm.limits import apply_limits
    from revati.engines.vllm.replica import VllmReplica

    assert isinstance(warm.replica, VllmReplica)
    apply_limits(warm.replica, Limits(**_limits(spec)))
    warm.meter.set_costs(deployment_costs(spec, spec.host.name))
    warm.core.set_allocations_wait(not spec.warmed_up)


def _limits(spec: DeploymentSpec) -> dict[str, int]:
    return {name: int(spec.engine_args.get(name) or default) for name, default in _SERVER_DEFAULTS.items()}


def _template_spec(spec: DeploymentSpec) -> DeploymentSpec:
    """The spec to warm up: at the widest limits where the trial's fit within them, else at its own."""
    limits = _limits(spec)
    shared = (
        os.environ.get(SHARE_VARIABLE) != "0"
        and limits["max_num_batched_tokens"] >= _SHARED_MINIMUM_TOKENS
        and all(limits[name] <= widest for name, widest in _WIDEST.items())
    )
    arguments = {**spec.engine_args, **(_WIDEST if shared else limits)}
    return replace(spec, engine_args=arguments)
