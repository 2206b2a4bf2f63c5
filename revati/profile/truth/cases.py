"""What is to be measured: engines, the GPUs each of them gets, and the workloads each of them serves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from revati.paths import conf_names
from revati.workload import Workload
from revati.workload.lengths import lengths_from_config
from revati.workload.sharing import prefixes_from_config, sessions_from_config

SAMPLING = "temperature 0, ignore_eos, output_tokens at most, random prompt token ids"
ARRIVALS = ("poisson", "spike", "offline")
Described = TypeVar("Described")


class CaseError(ValueError):
    """A wrong description; the message names what is accepted."""


@dataclass(frozen=True, slots=True)
class Load:
    """A workload by its description.

    `poisson` sends requests at random for `seconds`; `spike` adds `spike_requests` at once in the middle
    of that; `offline` sends `num_requests` at t = 0.  `prefixes` as in ``conf/workload/shared_prefix.yaml``,
    `sessions` (of `poisson`) as in ``conf/workload/multi_turn.yaml``: then `seconds` are those in which all
    turns would arrive if answers took no time and nobody thought.
    """

    name: str
    arrivals: str
    lengths: Mapping[str, Any]
    request_rate_per_s: float = 0.0
    seconds: float = 0.0
    spike_requests: int = 0
    num_requests: int = 0
    seed: int = 0
    prefixes: Mapping[str, Any] = field(default_factory=dict)
    sessions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise CaseError(
                f"workload {self.name}: arrivals={self.arrivals}; accepted: {', '.join(ARRIVALS)}"
            )
        needed = {
            "poisson": ("request_rate_per_s", "seconds"),
            "spike": ("request_rate_per_s", "seconds", "spike_requests"),
            "offline": ("num_requests",),
        }[self.arrivals]
        if missing := [name for name in needed if not getattr(self, name) > 0]:
            raise CaseError(f"workload {self.name}: {self.arrivals} arrivals need {', '.join(missing)} > 0")
        if self.sessions and self.arrivals != "poisson":
            raise CaseError(f"workload {self.name}: sessions need poisson arrivals")

    def requests(self) -> Workload:
        """Draw the requests; the same for every call."""
        lengths, prefixes = lengths_from_config(self.lengths), prefixes_from_config(self.prefixes)
        if self.arrivals == "offline":
            return Workload.from_offline(
                self.name,
                num_requests=self.num_requests,
                lengths=lengths,
                prefixes=prefixes,
                seed=self.seed,
            )
        poisson = Workload.from_poisson(
            self.name,
            request_rate_per_s=self.request_rate_per_s,
            num_requests=round(self.request_rate_per_s * self.seconds),
            lengths=lengths,
            prefixes=prefixes,
            sessions=sessions_from_config(self.sessions),
            seed=self.seed,
        )
        if self.arrivals == "poisson":
            return poisson
        return poisson.with_spike(self.spike_requests, self.seconds / 2, lengths, self.seed + 1)

    def description(self) -> dict[str, Any]:
        """What a run's run.json says of it."""
        return {
            "kind": self.arrivals,
            "lengths": dict(self.lengths),
            "request_rate_per_s": self.request_rate_per_s or None,
            "spike_requests": self.spike_requests or None,
            "prefixes": dict(self.prefixes) or None,
            "sessions": dict(self.sessions) or None,
            "seed": self.seed,
            "sampling": SAMPLING,
        }


@dataclass(frozen=True, slots=True)
class EngineRuns:
    """An engine and what it is measured with: each of its workloads `repeats` times, in rounds."""

    name: str
    model: str
    gpus: tuple[int, ...]
    workloads: tuple[str, ...]
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 3
    until_s: float = float("inf")  # begin no workload later than this, so that others get the GPUs

    def __post_init__(self) -> None:
        known = conf_names("model")
        if self.model not in known:
            raise CaseError(f"engine {self.name}: model={self.model}; accepted: {', '.join(known)}")
        if len(self.gpus) != self.parallel("tensor") * self.parallel("pipeline"):
            raise CaseError(
                f"engine {self.name}: {len(self.gpus)} gpus for "
                f"{self.parallel('tensor')} × {self.parallel('pipeline')} ranks"
            )

    def parallel(self, kind: str) -> int:
        """Its size in ranks; kind is tensor or pipeline."""
        return int(self.engine_args.get(f"{kind}_parallel_size", 1))

    def run_name(self, workload: str, repeat: int) -> str:
        """Name of one measured run; repeats count from 0."""
        return f"{self.name}_{workload}" + (f"_rep{repeat + 1}" if repeat else "")


@dataclass(frozen=True, slots=True)
class Cases:
    """A file of cases."""

    gpu: str
    engines: Mapping[str, EngineRuns]
    workloads: Mapping[str, Load]

    @classmethod
    def read(cls, path: Path) -> Cases:
        """Read a YAML file.

        Raises:
            CaseError: an unknown or a missing field, model or workload.
        """
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or set(content) != {"gpu", "engines", "workloads"}:
            raise CaseError(f"{path}: needs the fields gpu, engines, workloads and no other")
        workloads = {name: _described(Load, name, entry) for name, entry in content["workloads"].items()}
        engines = {}
        for name, entry in content["engines"].items():
            lists = {key: tuple(entry[key]) for key in ("gpus", "workloads") if key in entry}
            engines[name] = engine = _described(EngineRuns, name, entry | lists)
            if unknown := set(engine.workloads) - set(workloads):
                raise CaseError(
                    f"engine {name}: workloads {', '.join(sorted(unknown))}; accepted: {', '.join(workloads)}"
                )
        return cls(content["gpu"], engines, workloads)


def _described(kind: Callable[..., Described], name: str, entry: Mapping[str, Any]) -> Described:
    accepted = [parameter for parameter in inspect.signature(kind).parameters if parameter != "name"]
    if unknown := set(entry) - set(accepted):
        raise CaseError(f"{name}: unknown {', '.join(sorted(unknown))}; accepted: {', '.join(accepted)}")
    try:
        return kind(name=name, **entry)
    except TypeError as error:
        raise CaseError(f"{name}: {error}") from None
