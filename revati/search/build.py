"""From a checked Hydra configuration to the objects of a run; every refusal is a ConfigError."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from revati import paths
from revati.deployment.metrics import Slo
from revati.search.errors import ConfigError, unknown
from revati.search.knobs import engine_knobs, knob
from revati.search.objective import Objective
from revati.search.problem import Problem
from revati.search.space import REPLICAS, ROUTING, require_routing
from revati.spec import HOST_MODES, DeploymentSpec, HostMode, HostSpec, ModelShape
from revati.timing.source import UnknownSourceError, choose, source
from revati.workload import (
    Workload,
    WorkloadError,
    lengths_from_config,
    prefixes_from_config,
    sessions_from_config,
)

ARRIVALS = ("poisson", "offline", "trace")
TIMING_REQUIREMENTS = ("measured", "interpolated")


def plain(node: Any) -> Any:
    """A configuration node as dicts, lists and scalars."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build_problem(config: DictConfig, num_gpus: int) -> Problem:
    """The fixed part of the deployments.

    Raises:
        ConfigError: an engine argument, host or timing requirement that does not exist, or a model
            without the fields of a dense decoder.
    """
    if num_gpus < 1:
        raise ConfigError(f"num_gpus={num_gpus}: accepted: an integer >= 1")
    if config.timing.require not in (None, *TIMING_REQUIREMENTS):
        raise unknown("timing.require", config.timing.require, ["null", *TIMING_REQUIREMENTS])
    try:
        model = ModelShape(config.model.name, plain(config.model.hf_config))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _require_unchanged_gpu(config)
    engine = config.engine.name
    catalogue = engine_knobs(engine)
    arguments: dict[str, Any] = {}
    for name, value in plain(config.engine.args).items():
        if name not in catalogue:
            raise unknown(f"{engine} argument", name, catalogue)
        arguments[name] = catalogue[name].check(name, value)
    return Problem(
        model=model,
        engine=engine,
        engine_args=arguments,
        gpu=config.gpu_id,
        host=_host(config.host.name, config.host.mode),
        num_gpus=num_gpus,
        timing_source=_timing_source(config.timing.source, config.gpu_id),
        timing_require=config.timing.require,
        seed=config.seed,
    )


def one_spec(config: DictConfig) -> DeploymentSpec:
    """The one deployment of ``revati.emulate``: every knob has a single value.

    Raises:
        ConfigError: an unknown knob, or a value that it does not take.
    """
    problem = build_problem(config, num_gpus=1)
    knobs = plain(config.knobs)
    point = {name: knob(problem.engine, name).check(name, value) for name, value in knobs.items()}
    require_routing(point.get(REPLICAS, 1), ROUTING in point)
    return problem.spec(point)


def build_objective(config: DictConfig) -> Objective:
    content = plain(config.objective)
    return Objective.parse(content["metrics"], content["slo"], Slo(**content["request_slo"]))


def build_workload(config: DictConfig) -> Workload:
    """The requests, drawn with the run's seed.

    Raises:
        ConfigError: unknown arrivals, a trace that cannot be read, or numbers out of range.
    """
    workload, seed = config.workload, config.seed
    try:
        if workload.arrivals == "trace":
            return _trace(workload)
        drawn: dict[str, Any] = {
            "num_requests": workload.num_requests,
            "lengths": lengths_from_config(plain(workload.lengths)),
            "prefixes": prefixes_from_config(plain(workload.prefixes)),
            "sessions": sessions_from_config(plain(workload.sessions)),
            "seed": seed,
        }
        if workload.arrivals == "offline":
            return Workload.from_offline(workload.name, **drawn)
        if workload.arrivals == "poisson":
            rate = workload.request_rate_per_s
            return Workload.from_poisson(workload.name, request_rate_per_s=rate, **drawn)
    except WorkloadError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    raise unknown("workload.arrivals", workload.arrivals, ARRIVALS)


def _trace(workload: DictConfig) -> Workload:
    if workload.trace is None:
        raise ConfigError(
            "workload.trace is null; accepted: a Parquet file with arrival_s, prompt_tokens, output_tokens"
        )
    trace = Workload.from_trace(Path(workload.trace), workload.name)
    return trace.first(workload.num_requests) if workload.num_requests else trace


def _require_unchanged_gpu(config: DictConfig) -> None:
    # Interception reads the file: a setting that only this process knew would be ignored.
    described = plain(OmegaConf.load(paths.conf_dir() / "gpu" / f"{config.gpu_id}.yaml"))
    changed = [name for name, value in plain(config.gpu).items() if value != described.get(name)]
    if changed:
        raise ConfigError(
            f"gpu.{changed[0]} cannot be set here; accepted: gpu= with a description in conf/gpu/, "
            "where a new file describes another GPU"
        )


def _timing_source(asked: str | None, gpu: str) -> str:
    """The timing source, ready for engines to open."""
    try:
        chosen = choose(asked, gpu)
    except UnknownSourceError as error:
        raise ConfigError(str(error)) from None
    source(chosen).prepare(gpu)
    return chosen


def _host(name: str, mode: str) -> HostSpec:
    if mode not in HOST_MODES:
        raise unknown("host.mode", mode, HOST_MODES)
    known = sorted({path.stem for path in (paths.conf_dir() / "host").glob("*.*")})
    if mode != "free" and name not in known:
        raise unknown("host.name", name, known)
    return HostSpec(name, cast(HostMode, mode))
