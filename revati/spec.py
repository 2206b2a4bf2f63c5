"""What is deployed: model, engine, GPU, parallelism and engine settings, as plain data.

A spec crosses process boundaries as JSON, so this module imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

HostMode = Literal["table", "measured", "free"]
HOST_MODES: tuple[str, ...] = get_args(HostMode)

# Knobs that a forked trial applies to a warmed engine, so they are no part of its key.
SCHEDULER_KNOBS: frozenset[str] = frozenset(
    {
        *("max_num_seqs", "max_num_batched_tokens"),  # vLLM
        *("max_running_requests", "max_prefill_tokens", "schedule_policy"),  # SGLang
    }
)

# Nothing between clients and the engine; the engine's own balancing. Else: a router's policy.
NO_ROUTING, DATA_PARALLEL = "none", "data_parallel"

_REQUIRED_CONFIG = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as a Hugging Face ``config.json`` describes it; weights are never needed.

    Raises:
        ValueError: the configuration lacks a field that a dense decoder needs, or has one that is no
            positive integer.
    """

    name: str
    hf_config: dict[str, Any]

    def __post_init__(self) -> None:
        for key in _REQUIRED_CONFIG:
            value = self.hf_config.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ValueError(
                    f"model {self.name!r}: config field {key!r} must be a positive integer, got {value!r}; "
                    f"needed: {', '.join(_REQUIRED_CONFIG)}"
                )
        if not self.architectures:
            raise ValueError(f"model {self.name!r}: config field 'architectures' must name the model class")

    @property
    def architectures(self) -> list[str]:
        return list(self.hf_config.get("architectures") or [])

    @property
    def hidden_size(self) -> int:
        return int(self.hf_config["hidden_size"])

    @property
    def num_hidden_layers(self) -> int:
        return int(self.hf_config["num_hidden_layers"])

    @property
    def num_attention_heads(self) -> int:
        return int(self.hf_config["num_attention_heads"])

    @property
    def num_key_value_heads(self) -> int:
        """KV heads before tensor parallelism; multi-head attention when the config says nothing."""
        return int(self.hf_config.get("num_key_value_heads") or self.num_attention_heads)

    @property
    def head_dim(self) -> int:
        return int(self.hf_config.get("head_dim") or self.hidden_size // self.num_attention_heads)

    @property
    def intermediate_size(self) -> int:
        return int(self.hf_config["intermediate_size"])

    @property
    def vocab_size(self) -> int:
        return int(self.hf_config["vocab_size"])

    @property
    def max_position_embeddings(self) -> int:
        return int(self.hf_config.get("max_position_embeddings") or 4096)

    @property
    def dtype(self) -> str:
        """Weight type by torch's name, e.g. ``bfloat16``."""
        return str(self.hf_config.get("dtype") or self.hf_config.get("torch_dtype") or "bfloat16")

    @classmethod
    def from_config_json(cls, path: Path) -> ModelShape:
        """Read a local Hugging Face ``config.json``; the model is named after its folder.

        Raises:
            ValueError: the file is no JSON object or lacks a needed field.
            OSError: the file cannot be read.
        """
        try:
            config = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a JSON file: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path}: a Hugging Face config.json holds one JSON object")
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
        return cls(name=name, hf_config=config)


@dataclass(frozen=True, slots=True)
class HostSpec:
    """Where host time comes from: ``table`` (measured on the target), ``measured`` here, or ``free``."""

    name: str
    mode: HostMode = "table"

    def __post_init__(self) -> None:
        if self.mode not in HOST_MODES:
            raise ValueError(f"host mode {self.mode!r}: accepted are {', '.join(HOST_MODES)}")


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """One deployment: ``replicas`` engines of ``tensor × pipeline`` GPUs each.

    ``routing`` is what hands requests to several of them (see `revati.deployment.routers`).

    ``engine_args`` uses the engine's own names (``max_num_seqs``, ``enforce_eager``, …). Whether a
    combination fits is for the engine to say; only counts and JSON-ability are checked here.
    """

    engine: str
    model: ModelShape
    gpu: str
    host: HostSpec
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    routing: str = NO_ROUTING
    engine_args: dict[str, Any] = field(default_factory=dict)
    timing_source: str = "kernel_db"  # where kernel durations come from
    timing_require: str | None = None  # refuse timings of weaker provenance than this
    warmed_up: bool = True  # it has served such batches before, so its allocators' caches have grown
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "replicas"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if (self.replicas > 1) != (self.routing != NO_ROUTING):
            raise ValueError(
                f"routing={self.routing} with replicas={self.replicas}: one replica needs "
                f"{NO_ROUTING!r}, several need another"
            )

    @property
    def gpus_per_replica(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def num_gpus(self) -> int:
        return self.gpus_per_replica * self.replicas

    def engine_key(self, scheduler_knobs: Iterable[str] | None = None) -> str:
        """Digest of all that a started engine cannot change; equal keys can share one.

        Args:
            scheduler_knobs: engine arguments that a trial may still change; None: `SCHEDULER_KNOBS` of one
                replica, which is forked, and nothing of several, which are processes of their own.
        """
        if scheduler_knobs is None:
            scheduler_knobs = SCHEDULER_KNOBS if self.replicas == 1 else ()
        late = set(scheduler_knobs)
        early = {name: value for name, value in self.engine_args.items() if name not in late}
        # One template is one engine: how many of them a deployment has does not matter to it.
        content = replace(
            self, engine_args=early, replicas=1, routing=NO_ROUTING, warmed_up=True, seed=0
        ).to_json()
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DeploymentSpec:
        content = json.loads(text)
        model = ModelShape(**content.pop("model"))
        host = HostSpec(**content.pop("host"))
        return cls(model=model, host=host, **content)
