"""The host table of a case's machine, calibrated on other runs of the same engine.

Machines of one model differ in speed, and so do an engine's processes on one machine: by the cores that they
landed on and by what runs beside them.  A calibration of a minute tells; here the step logs of what else the
same engine served stand for it.  The case itself is left out, and no latency is looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from revati.profile.sglang_pipeline_fit import TooFewTurnsError, pipeline_phases
from revati.validate import host_log, turns
from revati.validate.phase_costs import PhaseCosts
from revati.validate.runs import CalibratedHost, Case, model_shape
from revati.virtual_time.host import WORKER_PHASES
from revati.virtual_time.host_table import HostTable, base_of, name_for
from revati.virtual_time.spread import QUANTILES, factors

LEAST_STEPS = 20
LEAST_RUN_STEPS = 200  # fewer long steps tell nothing of a host that is busy with short ones
BLOCKED = 2.0  # a step that takes so many times as long as its like waited for something
# Phases that every engine's core runs itself, by which the phases that no log shows are scaled.
COMMON = ("schedule", "update")
# Another process's, and what it does besides.
FRONTEND, OF_FRONTEND = "frontend_busy", "frontend_submit"


@dataclass(frozen=True, slots=True)
class Calibration:
    """How much slower than a table's slowdown 1 a machine runs, by phase and kind where its logs tell.

    ``runs``: whose logs they were. ``spread``: quantiles, as host tables have them.
    """

    base: str
    runs: tuple[str, ...]
    slowdown: float
    by_phase: Mapping[str, Mapping[str, float]]
    spread: Mapping[str, Mapping[str, Sequence[float]]]

    def write(self, path: Path) -> Path:
        """Write a host table."""
        content = {
            "base": self.base,
            "calibrated_on": list(self.runs),
            "slowdown": self.slowdown,
            "slowdown_of": {phase: dict(kinds) for phase, kinds in self.by_phase.items()},
            "spread_of": {phase: dict(kinds) for phase, kinds in self.spread.items()},
        }
        return _write(content, path)


def calibrated(case: Case, default: str, out: Path) -> CalibratedHost | None:
    """Write a case's host table into a folder; None where no other run of its engine has a step log.

    Pipeline stages of SGLang are calibrated on the own log of the case: their host changes from run to run.
    Where that is too short to tell all costs, it is joined by the others of the same engine processes.

    Args:
        default: the table where the manifest names none; what either is based on is calibrated.
    """
    base = base_of(name_for(case.host or default, case.description["engine"]))
    if case.description["engine"] == "sglang" and case.description["pipeline_parallel_size"] > 1:
        return _with_own_stages(case, base, out)
    runs = others(case)
    found = calibrate(runs, base) if runs else None
    if found is None:
        return None
    return CalibratedHost(found.write(out / f"{case.name}.yaml"), found.base, found.runs)


def _with_own_stages(case: Case, base: str, out: Path) -> CalibratedHost | None:
    runs = [run.folder for run in case.runs if (run.folder / "steps.parquet").is_file()]
    if not runs:
        return None
    stages = int(case.description["pipeline_parallel_size"])
    layers = model_shape(case.description["model"]).num_hidden_layers // stages
    try:
        phases = pipeline_phases(runs, layers)
    except TooFewTurnsError:
        runs += others(case)
        phases = pipeline_phases(runs, layers)
    names = [run.name for run in runs]
    path = _write({"base": base, "calibrated_on": names, "pipeline": phases}, out / f"{case.name}.yaml")
    return CalibratedHost(path, base, names)


def others(case: Case) -> list[Path]:
    """Runs beside a case's with a long step log that the same engine processes served, without its own."""
    # The start tells the runs of one engine from those of its like.
    known = [run.description for run in case.runs if run.description.get("engine_start_s") is not None]
    engines = {engine_of(description) for description in known}
    own = {run.name for run in case.runs}
    return [
        folder
        for folder in sorted(path.parent for path in case.runs[0].folder.parent.glob("*/steps.parquet"))
        if folder.name not in own and has_long_log(folder) and engine_of(_describe(folder)) in engines
    ]


def has_long_log(run: Path) -> bool:
    """Whether a run's step log tells enough of its host."""
    log = run / "steps.parquet"
    return log.is_file() and pq.read_metadata(log).num_rows >= LEAST_RUN_STEPS


def calibrate(runs: Sequence[Path], base: str) -> Calibration | None:
    """Compare runs of one engine with a host table; None if their logs tell too little.

    Args:
        base: a table of conf/host, compared at slowdown 1.
    """
    table = HostTable.load(base, slowdown=1.0)
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = {}  # (measured, by the table) in µs
    for run in runs:
        description = _describe(run)
        for costs in _logged(run, description):
            for phase in costs.phases:
                ratios.setdefault((phase, costs.kind), []).extend(_pairs(costs, table, description))
    by_phase: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, Sequence[float]]] = {}
    steps: dict[str, list[tuple[float, int]]] = {}  # by phase: slowdown and number of each kind's
    for (phase, kind), pairs in sorted(ratios.items()):
        if len(pairs) >= LEAST_STEPS:
            slowdown, quantiles = _compare(np.array(pairs))
            by_phase.setdefault(phase, {})[kind] = slowdown
            spread.setdefault(phase, {})[kind] = quantiles
            steps.setdefault(phase, []).append((slowdown, len(pairs)))
    common = [one for phase in COMMON for one in steps.get(phase, [])]
    if not common:
        return None
    for phase, known in steps.items():  # kinds that no log shows are as slow as those shown
        by_phase[phase].setdefault("any", _mean(known))
    if FRONTEND in by_phase:
        by_phase[OF_FRONTEND] = dict(by_phase[FRONTEND])
    return Calibration(base, tuple(run.name for run in runs), _mean(common), by_phase, spread)


def _mean(slowdowns: Sequence[tuple[float, int]]) -> float:
    """Of slowdowns and the number of steps that each is from."""
    return round(sum(one * steps for one, steps in slowdowns) / sum(steps for _, steps in slowdowns), 4)


def _write(content: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110))
    return path


def _logged(run: Path, description: Mapping[str, Any]) -> list[PhaseCosts]:
    if description["engine"] == "vllm":
        return host_log.read(run, description)
    log = turns.read(run, description)
    return turns.costs(log) if log else []


def _pairs(costs: PhaseCosts, table: HostTable, description: Mapping[str, Any]) -> list[tuple[float, float]]:
    stages = int(description["pipeline_parallel_size"])
    layers = math.ceil(model_shape(description["model"]).num_hidden_layers / stages)
    tensor_parallel = int(description["tensor_parallel_size"])
    ranks = [tensor_parallel * (1 if phase in WORKER_PHASES else stages) for phase in costs.phases]
    shapes = zip(costs.requests, costs.prompt_tokens, costs.prefills, strict=True)
    expected = [
        sum(
            table.phase_us(phase, costs.kind, int(n), int(tokens), int(prefills), layers, count)
            for phase, count in zip(costs.phases, ranks, strict=True)
        )
        for n, tokens, prefills in shapes
    ]
    return list(zip(costs.cost_us.tolist(), expected, strict=True))


def _compare(pairs: NDArray[np.float64]) -> tuple[float, list[float]]:
    """Slowdown and spread of a phase, which together have the measured mean."""
    measured, expected = pairs.T
    ratio = measured / expected
    usual = ratio <= BLOCKED * np.median(ratio)
    relative = np.quantile(ratio[usual], QUANTILES) / np.median(ratio[usual])
    quantiles = [round(float(value), 3) for value in relative]
    slowdown = float(measured[usual].sum() / expected[usual].sum())
    return round(slowdown / fmean(factors(quantiles)), 4), quantiles


def engine_of(description: Mapping[str, Any]) -> str:
    """Equal for runs of one engine process."""
    return json.dumps(
        [description.get(name) for name in ("engine", "model", "engine_args", "engine_start_s")]
    )


def _describe(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content
