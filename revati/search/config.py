"""What ``conf/`` may hold: one dataclass per configuration group, checked by Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    name: str = MISSING
    hub_id: str | None = None  # what the recommended command serves; null: `name`
    hf_config: dict[str, Any] = MISSING  # as in a Hugging Face config.json


@dataclass
class EngineConfig:
    name: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)  # the engine's own names


@dataclass
class WorkloadConfig:
    name: str = MISSING
    arrivals: str = "poisson"  # poisson | offline | trace
    num_requests: int = 200
    request_rate_per_s: float = 1.0
    lengths: dict[str, Any] = field(default_factory=dict)
    prefixes: dict[str, Any] = field(default_factory=dict)  # of groups of prompts; empty: none
    sessions: dict[str, Any] = field(default_factory=dict)  # conversations; empty: none
    trace: str | None = None  # Parquet file


@dataclass
class RequestSloConfig:
    """Upper bounds that make one request a good one (goodput)."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


@dataclass
class ObjectiveConfig:
    metrics: list[str] = MISSING  # "metric" or "metric:max"; the first one is the primary
    slo: dict[str, float] = field(default_factory=dict)  # metric → bound
    request_slo: RequestSloConfig = field(default_factory=RequestSloConfig)


@dataclass
class SearchConfig:
    algorithm: str = MISSING  # grid | random | tpe | nsga2
    num_trials: int | None = None  # null: all (grid only)
    max_concurrent: int | None = None  # trials at a time; null: as many as cores and memory allow
    startup_trials: int = 10  # tpe: random ones before the model
    population_size: int = 12  # nsga2


@dataclass
class HostConfig:
    name: str = "h200_xeon"
    mode: str = "table"


@dataclass
class TimingConfig:
    source: str | None = None  # kernel_db | aiconfigurator | a plug-in's name; null: what has the GPU
    require: str | None = None  # measured | interpolated


@dataclass
class RayConfig:
    dashboard: bool = True


@dataclass
class EmulateConfig:
    """What ``python -m revati.emulate`` understands."""

    model: ModelConfig = MISSING
    engine: EngineConfig = MISSING
    gpu: dict[str, Any] = MISSING  # the description that interception serves from
    gpu_id: str = "${hydra:runtime.choices.gpu}"  # the option's name, e.g. h200
    workload: WorkloadConfig = MISSING
    objective: ObjectiveConfig = MISSING
    host: HostConfig = field(default_factory=HostConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    knobs: dict[str, Any] = field(default_factory=dict)
    deployment: str = "auto"  # auto | inprocess | processes
    seed: int = 0
    output_dir: str = MISSING


@dataclass
class SweepConfig(EmulateConfig):
    """What ``python -m revati.sweep`` understands."""

    search: SearchConfig = MISSING
    engines: list[str] = field(default_factory=list)  # several: engine=[vllm,sglang]
    search_space: str = "default"
    num_gpus: int = 8
    ray: RayConfig = field(default_factory=RayConfig)


SCHEMAS: dict[str, type] = {"sweep": SweepConfig, "emulate": EmulateConfig}

# Mappings that take new names; everything else has a fixed set of fields.
OPEN_MAPPINGS = (
    "knobs",
    "engine.args",
    "objective.slo",
    "workload.lengths",
    "workload.prefixes",
    "workload.sessions",
)


def register() -> None:
    """Make the schemas known to Hydra under the names that ``conf/*.yaml`` refer to."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
