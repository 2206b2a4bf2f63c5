"""Measured runs: one folder a run, the repeats of a run together one case."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from revati import paths
from revati.deployment.metrics import summarize
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.validate.metrics import KV_METRIC, is_tail
from revati.workload import Workload
from revati.workload.sharing import NONE

MANIFEST = "manifest.yaml"
# Recorded by a run under its resolved settings, because the defaults depend on how the engine was started.
RESOLVED_SETTINGS = {"vllm": ("max_num_seqs", "max_num_batched_tokens"), "sglang": ()}
_PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "tp_size", "pp_size")


class ValidationError(ValueError):
    """A wrong argument or folder; the message names what is accepted."""


class Unsupported(Exception):
    """A measured run that cannot be emulated yet; the message says why."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A measured run: its description, its metrics, the requests to replay."""

    name: str
    folder: Path
    description: Mapping[str, Any]
    metrics: Mapping[str, float]  # NaN where the run says nothing of a metric

    @property
    def case(self) -> str:
        """The run that this one repeats (itself if it repeats none)."""
        return re.sub(r"_rep\d+$", "", self.name)

    @property
    def workload(self) -> Workload:
        return Workload.from_trace(self.folder / "requests.parquet", self.name)

    @classmethod
    def read(cls, folder: Path) -> MeasuredRun:
        """Read run.json and requests.parquet of a folder."""
        description = json.loads((folder / "run.json").read_text())
        metrics = summarize(pq.read_table(folder / "requests.parquet"), int(description["num_gpus"]))
        if description.get("frontend_stall"):  # the load generator paused: tails are its own
            metrics |= {name: math.nan for name in metrics if is_tail(name)}
        metrics[KV_METRIC] = float(description["resolved"]["num_gpu_blocks"])
        return cls(folder.name, folder, description, metrics)


@dataclass(frozen=True, slots=True)
class CalibratedHost:
    """A host table made for a case: its file, the table that it is based on, the runs that it is from."""

    path: Path
    base: str
    runs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Case:
    """A deployment under one workload, measured once or more often.

    `dev`: somebody looked at these runs while working on the emulation.
    """

    name: str
    runs: Sequence[MeasuredRun]
    dev: bool = False
    host: str | None = None  # the host table of the machine that it was measured on
    calibrated: CalibratedHost | None = None  # instead of it
    machine: str | None = None  # that it was measured on

    @property
    def description(self) -> Mapping[str, Any]:
        return self.runs[0].description

    @property
    def num_gpus(self) -> int:
        return int(self.description["num_gpus"])

    @property
    def recorded_at(self) -> str:
        """The day of the measurement, "" where nobody wrote it down."""
        places = (self.description, self.description.get("environment", {}))
        return next((str(place["recorded_at"]) for place in places if "recorded_at" in place), "")

    @property
    def configuration(self) -> str:
        """Equal for cases that differ by their machine and requests alone."""
        names = ("engine", "gpu", "num_gpus", "tensor_parallel_size", "pipeline_parallel_size", "engine_args")
        model = model_shape(self.description["model"]).name
        return json.dumps([model, *(self.description[name] for name in names)])

    @property
    def host_name(self) -> str | None:
        """What `HostTable.load` accepts; None where nothing is known of the machine."""
        return str(self.calibrated.path) if self.calibrated else self.host

    @property
    def workload(self) -> Workload:
        return self.runs[0].workload

    def values(self, metric: str) -> list[float]:
        """What the repeats say of a metric, without those that say nothing."""
        return [v for run in self.runs if not math.isnan(v := run.metrics[metric])]

    def measured(self, metric: str) -> float:
        """Median of the repeats; NaN without any."""
        values = self.values(metric)
        return median(values) if values else math.nan

    def without(self, repeat: MeasuredRun) -> Case:
        """The case as if this run of it had not been measured."""
        return replace(self, runs=[run for run in self.runs if run is not repeat])

    def noise_pct(self, metric: str) -> float:
        """Error of one more real run, mean of absolutes; NaN without repeats."""
        errors = self.repeat_errors_pct(metric)
        return sum(errors) / len(errors) if errors else math.nan

    def repeat_errors_pct(self, metric: str) -> list[float]:
        """Absolute errors of each repeat against the median of the others, where there are and it isn't 0."""
        values = self.values(metric)
        if len(values) < 2:
            return []
        others = [median(values[:i] + values[i + 1 :]) for i in range(len(values))]
        return [100 * abs(value / other - 1) for value, other in zip(values, others, strict=True) if other]

    def spec(self, host: HostSpec) -> DeploymentSpec:
        """The deployment that was measured.

        Raises:
            Unsupported: settings that the emulation doesn't cover yet, or a model of unknown shape.
        """
        content = self.description
        if content["engine"] not in RESOLVED_SETTINGS:
            known = ", ".join(RESOLVED_SETTINGS)
            raise Unsupported(f"engine {content['engine']}: only {known} are emulated so far")
        arguments = {
            name: value for name, value in content["engine_args"].items() if name not in _PARALLEL_SIZES
        }
        for name in RESOLVED_SETTINGS[content["engine"]]:
            arguments.setdefault(name, content["resolved"][name])
        return DeploymentSpec(
            engine=content["engine"],
            model=model_shape(content["model"]),
            gpu=content["gpu"],
            host=HostSpec(self.host_name or host.name, host.mode),
            tensor_parallel_size=content["tensor_parallel_size"],
            pipeline_parallel_size=content["pipeline_parallel_size"],
            engine_args=arguments,
            # The median of repeats is of an engine that has served these requests before.
            warmed_up=len(self.runs) > 1,
        )

    def requests_digest(self) -> str:
        """Equal for cases that serve the same requests."""
        return _digest(self.workload)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder's manifest.yaml says of its runs: patterns of case names.

    `dev` lists those that were looked at, `host` maps patterns to host tables and `machine` to names of the
    machines that were rented (the first that fits).
    """

    dev: Sequence[str] = ()
    host: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST
        if not path.is_file():
            return cls()
        content = yaml.safe_load(path.read_text()) or {}
        if unknown := set(content) - {"dev", "host", "machine"}:
            raise ValidationError(
                f"{path}: unknown {', '.join(sorted(unknown))}; accepted: dev, host, machine"
            )
        return cls(content.get("dev") or (), content.get("host") or {}, content.get("machine") or {})

    def is_dev(self, case: str) -> bool:
        return any(fnmatch.fnmatch(case, pattern) for pattern in self.dev)

    def host_of(self, case: str) -> str | None:
        return _first_fitting(self.host, case)

    def machine_of(self, case: str) -> str | None:
        return _first_fitting(self.machine, case)


def _first_fitting(values: Mapping[str, str], case: str) -> str | None:
    return next((value for pattern, value in values.items() if fnmatch.fnmatch(case, pattern)), None)


def read_cases(folders: Sequence[Path], pattern: str = "*") -> list[Case]:
    """Read the measured runs of some folders whose names match a pattern.

    Raises:
        ValidationError: there is no such folder, no run matches, or repeats differ in their requests.
    """
    names: list[str] = []
    grouped: dict[str, list[MeasuredRun]] = {}
    manifests: dict[Path, Manifest] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValidationError(f"{folder} is no folder; give one with a folder a measured run")
        manifests[folder] = Manifest.read(folder)
        found = sorted(path.parent for path in folder.glob("*/run.json"))
        names += [path.name for path in found]
        for path in found:
            if fnmatch.fnmatch(path.name, pattern):
                run = MeasuredRun.read(path)
                grouped.setdefault(run.case, []).append(run)
    if not grouped:
        where = ", ".join(map(str, folders))
        raise ValidationError(f"runs={pattern} matches none of {where}: {', '.join(names) or 'no run.json'}")
    cases = []
    for name, runs in sorted(grouped.items()):
        if len({_digest(run.workload) for run in runs}) > 1:
            raise ValidationError(
                f"{name}: its repeats serve different requests; give them names of their own"
            )
        manifest = manifests[runs[0].folder.parent]
        cases.append(
            Case(
                name,
                runs,
                manifest.is_dev(name),
                manifest.host_of(name),
                machine=manifest.machine_of(name),
            )
        )
    return cases


def model_shape(name: str) -> ModelShape:
    """The model of conf/model whose name is the run's, punctuation aside.

    Raises:
        Unsupported: there is none.
    """
    return _model_shape(name, paths.conf_dir() / "model")


@cache  # all runs of a model ask for it
def _model_shape(name: str, folder: Path) -> ModelShape:
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    for stem, path in known.items():
        if re.sub(r"[^a-z0-9]", "", stem.lower()) == key:
            return ModelShape(stem, yaml.safe_load(path.read_text())["hf_config"])
    raise Unsupported(f"model {name}: no such shape in conf/model; known: {', '.join(known)}")


def _digest(workload: Workload) -> str:
    content = hashlib.sha256()
    arrival_us = np.rint(1e6 * workload.arrival_s).astype(np.int64)  # recorded on clocks of different origin
    if workload.sharing is not None:  # later turns arrive when they can
        following = workload.sharing.next_turn()
        later = following[following != NONE]
        arrival_us[later] = np.rint(1e6 * workload.sharing.think_s[later])
    columns = (workload.output_tokens, workload.prompt_tokens, arrival_us)
    order = np.lexsort(columns)  # clients may send what arrives at once in any order
    for column in columns:
        content.update(column[order].tobytes())
    return content.hexdigest()[:16]
