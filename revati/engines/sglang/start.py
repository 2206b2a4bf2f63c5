"""Starts SGLang for emulation (see `revati.engines.warm.EngineModule`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from revati.engines.base import Http, InfeasibleError, ServerControl, ServerProgram, StartedServer
from revati.engines.common import cached_model_folder, deployment_costs, import_for_forks, rank_shape
from revati.engines.sglang.http_control import HttpControl
from revati.engines.sglang.processes import PLUGIN
from revati.engines.sglang.settings import (
    DEPLOYMENT_ENVIRONMENT,
    EMULATION_ENVIRONMENT,
    process_environment,
    serve_command,
    toolkit_environment,
)
from revati.engines.warm import WarmEngine
from revati.environments import interpreter
from revati.interception.core import NativeCore
from revati.interception.gpu import load_gpu
from revati.spec import DATA_PARALLEL, DeploymentSpec, HostSpec
from revati.timing.attach import LaunchPricing
from revati.timing.source import source
from revati.virtual_time.host import HostMeter
from revati.virtual_time.host_table import name_for

STAGES_IN_ONE_PROCESS = False
# What a forked trial sets on a warmed scheduler, and that nothing else was derived from.
LATE_KNOBS = frozenset({"max_running_requests", "max_prefill_tokens", "schedule_policy"})


def environment() -> dict[str, str]:
    return process_environment()


def served_environment() -> dict[str, str]:
    return {
        **DEPLOYMENT_ENVIRONMENT,
        **EMULATION_ENVIRONMENT,
        **toolkit_environment(),
        "SGLANG_PLUGINS": PLUGIN,
    }


def preload() -> None:
    import_for_forks(
        (
            "torch",
            "sglang.srt.managers.scheduler",
            "sglang.srt.managers.tp_worker",
            "sglang.srt.model_executor.model_runner",
            "sglang.srt.models.llama",
            "revati.engines.sglang.replica",
        )
    )


def template_key(spec: DeploymentSpec) -> str:
    # A warmed engine knows nothing of the host that its trials assume, nor of what they demand of timings.
    any_host = replace(spec, host=HostSpec("any", "free"), timing_require=None)
    return any_host.engine_key(scheduler_knobs=LATE_KNOBS)


def start(spec: DeploymentSpec) -> WarmEngine:
    from revati.engines.sglang.replica import SglangReplica

    if spec.pipeline_parallel_size > 1:
        raise InfeasibleError(
            "SGLang's pipeline stages have processes of their own: deployment=processes or auto"
        )
    gpu = load_gpu(spec.gpu)
    core = NativeCore()
    core.configure(gpu.to_environment(spec.tensor_parallel_size))
    timings = source(spec.timing_source).open(spec.gpu, rank_shape(spec.model, spec.tensor_parallel_size))
    pricing = LaunchPricing(core, timings, gpu, "sglang")
    meter = HostMeter(core)
    pricing.own_time = meter.excluded
    replica = SglangReplica(_without_late_knobs(spec), cached_model_folder(spec.model), pricing, meter)
    pricing.refuse_unread()
    return WarmEngine(replica, core, meter, pricing)


def serve(spec: DeploymentSpec, work_dir: Path) -> StartedServer:
    from revati.engines.sglang.server import SglangServer

    return SglangServer(spec, work_dir)


def server_program(spec: DeploymentSpec, model_folder: Path, port: int) -> ServerProgram:
    if spec.routing == DATA_PARALLEL:
        raise InfeasibleError(f"routing={DATA_PARALLEL} is vLLM's own: SGLang's replicas need a router")
    _, *arguments = serve_command(spec, str(model_folder))
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", spec.model.name]
    arguments += ["--load-format", "dummy", "--random-seed", str(spec.seed)]
    arguments += ["--enable-cache-report"]  # what is cached of a prompt
    return ServerProgram([str(interpreter("sglang")), *arguments], served_environment())


def server_control(http: Http) -> ServerControl:
    return HttpControl(http)


def before_fork(warm: WarmEngine, spec: DeploymentSpec) -> None:
    """Nothing that later trials could reuse."""


def prepare(warm: WarmEngine, spec: DeploymentSpec) -> None:
    from revati.engines.sglang.limits import apply_late_knobs
    from revati.engines.sglang.replica import SglangReplica

    assert isinstance(warm.replica, SglangReplica)
    late: dict[str, Any] = {name: spec.engine_args[name] for name in LATE_KNOBS & spec.engine_args.keys()}
    apply_late_knobs(warm.replica, late)
    warm.meter.set_costs(deployment_costs(spec, name_for(spec.host.name, "sglang")))
    warm.core.set_allocations_wait(not spec.warmed_up)


def _without_late_knobs(spec: DeploymentSpec) -> DeploymentSpec:
    early = {name: value for name, value in spec.engine_args.items() if name not in LATE_KNOBS}
    return replace(spec, engine_args=early)
