"""The knobs that a search may turn, per engine: the engine's own names, types and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from revati.deployment.routers import ROUTINGS
from revati.search.errors import ConfigError, unknown


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: its type, and its choices or smallest and largest value."""

    type: type
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, name: str, value: Any) -> Any:
        """Return the value in the knob's type, or raise ConfigError naming what is accepted."""
        number = isinstance(value, int) and not isinstance(value, bool)
        if self.type is float and number:
            value = float(value)
        if type(value) is not self.type or not self._within(value):
            raise ConfigError(f"knob {name}={value!r}: accepted: {self.accepted}")
        return value

    def _within(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def accepted(self) -> str:
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        kind = {int: "an integer", float: "a number", bool: "true, false", str: "a text"}[self.type]
        if self.low is not None and self.high is not None:
            return f"{kind} from {self.low} to {self.high}"
        return kind if self.low is None else f"{kind} >= {self.low}"


UNQUANTISED = "none"  # a value of ours: engines have no name for it

# Of the deployment rather than of an engine.
DEPLOYMENT_KNOBS: dict[str, Knob] = {
    "tensor_parallel_size": Knob(int, choices=(1, 2, 4, 8)),
    "pipeline_parallel_size": Knob(int, choices=(1, 2, 4, 8)),
    "replicas": Knob(int, low=1, high=64),
    "routing": Knob(str, choices=ROUTINGS),
}

_VLLM: dict[str, Knob] = {
    "max_num_seqs": Knob(int, low=1, high=65536),
    "max_num_batched_tokens": Knob(int, low=1, high=1 << 20),
    "gpu_memory_utilization": Knob(float, low=0.01, high=1.0),
    "max_model_len": Knob(int, low=1),
    "block_size": Knob(int, choices=(16, 32, 64, 128)),
    "enforce_eager": Knob(bool),
    "enable_prefix_caching": Knob(bool),
    "enable_chunked_prefill": Knob(bool),
    "async_scheduling": Knob(bool),
    "scheduling_policy": Knob(str, choices=("fcfs", "priority")),
    "long_prefill_token_threshold": Knob(int, low=0),
    "max_num_partial_prefills": Knob(int, low=1),
    "max_long_partial_prefills": Knob(int, low=1),
    "performance_mode": Knob(str, choices=("balanced", "interactivity", "throughput")),
    "dtype": Knob(str, choices=("auto", "bfloat16", "float16")),
    "quantization": Knob(str, choices=(UNQUANTISED, "fp8")),
}

_SGLANG: dict[str, Knob] = {
    "max_running_requests": Knob(int, low=1, high=65536),
    "chunked_prefill_size": Knob(int, low=1, high=1 << 20),
    "max_prefill_tokens": Knob(int, low=1, high=1 << 20),
    "mem_fraction_static": Knob(float, low=0.01, high=1.0),
    "context_length": Knob(int, low=1),
    "schedule_policy": Knob(str, choices=("fcfs", "lpm", "dfs-weight", "lof", "random")),
    "schedule_conservativeness": Knob(float, low=0.0, high=10.0),
    "num_continuous_decode_steps": Knob(int, low=1, high=64),
    "enable_mixed_chunk": Knob(bool),
    "disable_radix_cache": Knob(bool),
    "disable_overlap_schedule": Knob(bool),
    "cuda_graph_max_bs_decode": Knob(int, low=1, high=4096),
    "cuda_graph_max_bs_prefill": Knob(int, low=1, high=1 << 20),
    "dtype": Knob(str, choices=("auto", "bfloat16", "float16")),
}

ENGINE_KNOBS: dict[str, dict[str, Knob]] = {"sglang": _SGLANG, "vllm": _VLLM}


def engine_knobs(engine: str) -> dict[str, Knob]:
    if engine not in ENGINE_KNOBS:
        raise unknown("engine", engine, ENGINE_KNOBS)
    return ENGINE_KNOBS[engine]


def knob(engine: str, name: str) -> Knob:
    """The knob of that name, of the deployment or of the engine."""
    catalogue = {**DEPLOYMENT_KNOBS, **engine_knobs(engine)}
    if name not in catalogue:
        raise unknown(f"{engine} knob", name, catalogue)
    return catalogue[name]
