"""The host table of a case's machine, calibrated on its other runs.

Machines of one model differ in speed, and so do an engine's processes on one machine: by the cores that they
landed on and by what runs beside them.  A calibration of a minute tells; here the step logs of what else the
same engine served stand for it, and of what these do not show, those of engines like it on the same machine.
The case itself is left out, and no latency is looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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
from revati.validate.runs import CalibratedHost, Case, Manifest, model_shape
from revati.virtual_time.host import WORKER_PHASES
from revati.virtual_time.host_table import HostTable, base_of, name_for
from revati.virtual_time.spread import QUANTILES, factors

LEAST_STEPS = 20
LEAST_RUN_STEPS = 200  # fewer long steps tell nothing of a host that is busy with short ones
# A step that takes so many times as long as most of its like (hosts have fast times and slow ones) waited for
# something, but for steps of one graph, whose host waits for nobody: it stalled.
BLOCKED, MOST = 2.0, 0.75
UNBLOCKED = "full"
# Above this share of those steps' time the machine stalls, not a thread now and then for another one; then
# all of its work does, and what takes so long in other steps is such a stall, too.
STALLING = 0.03
# No log shows its cost, and stalls delay it as well.
WAKE, WAKE_REQUESTS = "wake", 8
# Phases that every engine's core runs itself, by which the phases that no log shows are scaled.
COMMON = ("schedule", "update")
# What one engine's steps are of; those that no log shows are to the others as on the median of all machines.
GRAPHED = ("compiled", "full", "piecewise")
TYPICAL = "rented_xeon"
TYPICAL_REQUESTS, TYPICAL_TOKENS, TYPICAL_LAYERS = 16, 500, 32


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
    """Write a case's host table into a folder; None where no other run of its machine has a step log.

    Pipeline stages of SGLang are calibrated on the own log of the case: their host changes from run to run.
    Where that is too short to tell all costs, it is joined by the others of the same engine processes.

    Args:
        default: the table where the manifest names none; what either is based on is calibrated.
    """
    base = base_of(name_for(case.host or default, case.description["engine"]))
    if case.description["engine"] == "sglang" and case.description["pipeline_parallel_size"] > 1:
        return _with_own_stages(case, base, out)
    runs = others(case)
    beside = neighbours(case, runs)
    found = calibrate(runs, base, beside) if runs or beside else None
    if found is None:
        return None
    if case.description["engine"] == "vllm":
        found = with_typical_kinds(found, case.description)
    return CalibratedHost(found.write(out / f"{case.name}.yaml"), found.base, found.runs)


def with_typical_kinds(found: Calibration, description: Mapping[str, Any]) -> Calibration:
    """Add kinds of steps that no log shows, relative to the shown ones as on the typical machine."""

    def typical(phase: str, kind: str) -> float:
        of_step = phase, kind, TYPICAL_REQUESTS, TYPICAL_TOKENS, 1, TYPICAL_LAYERS, _ranks(phase, description)
        return _table(TYPICAL).phase_us(*of_step) / _table(found.base).phase_us(*of_step)

    by_phase: dict[str, Mapping[str, float]] = {}
    for phase, kinds in found.by_phase.items():
        relative = [kinds[kind] / typical(phase, kind) for kind in GRAPHED if kind in kinds]
        by_phase[phase] = kinds
        if relative:
            known = {kind: round(fmean(relative) * typical(phase, kind), 4) for kind in GRAPHED}
            by_phase[phase] = known | dict(kinds)
    return replace(found, by_phase=by_phase)


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
    return [run for run in _long_logs(case) if engine_of(_describe(run)) in engines]


def neighbours(case: Case, engines_own: Sequence[Path]) -> list[Path]:
    """Runs with a long step log of other engines on the case's machine, parallel in the same ways.

    Args:
        engines_own: what `others` says.
    """
    if case.machine is None:
        return []
    manifest = Manifest.read(case.runs[0].folder.parent)
    return [
        run
        for run in _long_logs(case)
        if run not in engines_own
        and manifest.machine_of(run.name) == case.machine
        and _layout(_describe(run)) == _layout(case.description)
    ]


def _long_logs(case: Case) -> list[Path]:
    """All runs in a case's folder with a long step log, without its own."""
    own = {run.name for run in case.runs}
    runs = sorted(path.parent for path in case.runs[0].folder.parent.glob("*/steps.parquet"))
    return [run for run in runs if run.name not in own and has_long_log(run)]


def _layout(description: Mapping[str, Any]) -> tuple[object, ...]:
    sizes = (int(description[f"{kind}_parallel_size"]) > 1 for kind in ("tensor", "pipeline"))
    return description["engine"], *sizes


def has_long_log(run: Path) -> bool:
    """Whether a run's step log tells enough of its host."""
    log = run / "steps.parquet"
    return log.is_file() and pq.read_metadata(log).num_rows >= LEAST_RUN_STEPS


def calibrate(runs: Sequence[Path], base: str, beside: Sequence[Path] = ()) -> Calibration | None:
    """Compare runs of one engine with a host table; None if their logs tell too little.

    Args:
        base: a table of conf/host, compared at slowdown 1.
        beside: runs of other engines on the same machine: what the engine's own do not show costs more or
            less than there as what both show does.
    """
    logged, logged_there = _joined(runs, base), _joined(beside, base)
    stalled, stall_us = _stalls(logged or logged_there)
    stalling = stalled >= STALLING
    own, there = _shown(logged, stalling), _shown(logged_there, stalling)
    common = [shown for (phase, _), shown in (own or there).items() if phase in COMMON]
    if not common:
        return None
    by_phase: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, Sequence[float]]] = {}
    for phase in sorted({phase for phase, _ in (*own, *there)}):
        mine, theirs = _of(own, phase), _of(there, phase)
        relative = _relative(mine, theirs) or _relative(own, there) or 1.0
        slowdowns = {kind: round(relative * shown.slowdown, 4) for kind, shown in theirs.items()}
        slowdowns |= {kind: shown.slowdown for kind, shown in mine.items()}
        usual = _mean(mine.values()) if mine else relative * _mean(theirs.values())
        by_phase[phase] = dict(sorted(slowdowns.items())) | {"any": round(usual, 4)}
        spread[phase] = {kind: shown.spread for kind, shown in sorted((theirs | mine).items())}
    if stalling:
        wake_us = _table(base).phase_us(WAKE, UNBLOCKED, WAKE_REQUESTS)
        spread[WAKE] = {"any": [1.0, 1.0, 1.0, round(stalled, 4), round(1.0 + stall_us / wake_us, 3)]}
    names = tuple(run.name for run in (*runs, *beside))
    return Calibration(base, names, round(_mean(common), 4), by_phase, spread)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What logs tell of a phase in one kind of steps."""

    slowdown: float
    spread: Sequence[float]
    steps: int


Key = tuple[str, str]  # phase, kind
Pairs = NDArray[np.float64]  # (n, 2): measured, by the table; in µs


def _joined(runs: Sequence[Path], base: str) -> dict[Key, Pairs]:
    """What the logs of runs show, beside what a table says."""
    by_key: dict[Key, list[Pairs]] = {}
    for run in runs:
        for key, pairs in _paired(run, base).items():
            by_key.setdefault(key, []).append(pairs)
    return {key: np.concatenate(parts) for key, parts in by_key.items()}


def _shown(logged: Mapping[Key, Pairs], stalling: bool) -> dict[Key, _Shown]:
    """What logs show often enough."""
    return {
        (phase, kind): _Shown(*_compare(pairs, stalling or kind == UNBLOCKED), len(pairs))
        for (phase, kind), pairs in logged.items()
        if len(pairs) >= LEAST_STEPS
    }


@cache  # all cases of a machine ask for its runs
def _paired(run: Path, base: str) -> Mapping[Key, Pairs]:
    """What a run's log tells of each phase and kind, beside what a table says."""
    description = _describe(run)
    found: dict[Key, list[Pairs]] = {}
    for costs in _logged(run, description):
        for phase in costs.phases:
            found.setdefault((phase, costs.kind), []).append(_pairs(costs, _table(base), description))
    return {key: np.concatenate(parts) for key, parts in found.items()}


@cache
def _table(base: str) -> HostTable:
    return HostTable.load(base, slowdown=1.0)


def _of(shown: Mapping[Key, _Shown], phase: str) -> dict[str, _Shown]:
    return {kind: one for (name, kind), one in shown.items() if name == phase}


def _relative(own: Mapping[Any, _Shown], there: Mapping[Any, _Shown]) -> float:
    """How much slower an engine is than others in what both show, weighted by its steps; 0 if nothing."""
    both = own.keys() & there.keys()
    elsewhere = sum(own[key].steps * there[key].slowdown for key in both)
    return sum(own[key].steps * own[key].slowdown for key in both) / elsewhere if both else 0.0


def _mean(shown: Iterable[_Shown]) -> float:
    """Weighted by the number of steps."""
    known = list(shown)
    return sum(one.slowdown * one.steps for one in known) / sum(one.steps for one in known)


def _write(content: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110))
    return path


def _logged(run: Path, description: Mapping[str, Any]) -> list[PhaseCosts]:
    if description["engine"] == "vllm":
        return host_log.read(run, description)
    log = turns.read(run, description)
    return turns.costs(log) if log else []


def _ranks(phase: str, description: Mapping[str, Any]) -> int:
    stages = 1 if phase in WORKER_PHASES else int(description["pipeline_parallel_size"])
    return stages * int(description["tensor_parallel_size"])


def _pairs(costs: PhaseCosts, table: HostTable, description: Mapping[str, Any]) -> Pairs:
    stages = int(description["pipeline_parallel_size"])
    layers = math.ceil(model_shape(description["model"]).num_hidden_layers / stages)
    ranks = [_ranks(phase, description) for phase in costs.phases]
    shapes = zip(costs.requests, costs.prompt_tokens, costs.prefills, strict=True)
    expected = [
        sum(
            table.phase_us(phase, costs.kind, int(n), int(tokens), int(prefills), layers, count)
            for phase, count in zip(costs.phases, ranks, strict=True)
        )
        for n, tokens, prefills in shapes
    ]
    return np.column_stack([np.asarray(costs.cost_us, np.float64), expected])


def _stalls(logged: Mapping[Key, Pairs]) -> tuple[float, float]:
    """In which share of the time of steps that wait for nobody a host stalls, and for how many µs each."""
    spent_us = 0.0
    stalls_us: list[float] = []
    for phase in WORKER_PHASES:
        if (phase, UNBLOCKED) in logged:
            measured, expected = logged[phase, UNBLOCKED].T
            ratio = measured / expected
            stalls_us += (measured - np.median(ratio) * expected)[_blocked(ratio)].tolist()
            spent_us += float(measured.sum())
    return (sum(stalls_us) / spent_us, fmean(stalls_us)) if stalls_us else (0.0, 0.0)


def _blocked(ratio: NDArray[np.float64]) -> NDArray[np.bool_]:
    blocked: NDArray[np.bool_] = ratio > BLOCKED * np.quantile(ratio, MOST)
    return blocked


def _compare(pairs: Pairs, unblocked: bool) -> tuple[float, list[float]]:
    """Slowdown and spread of a phase, which together have the measured mean.

    Args:
        unblocked: what takes much longer than its like is the host's own time.
    """
    measured, expected = pairs.T
    ratio = measured / expected
    usual = ~_blocked(ratio)
    relative = np.quantile(ratio[usual], QUANTILES) / np.median(ratio[usual])
    spread = [round(float(value), 3) for value in relative]
    counted = usual
    if unblocked and not usual.all():
        stall = float(ratio[~usual].mean() / np.median(ratio[usual]))
        spread += [round(1.0 - float(usual.mean()), 4), round(stall, 3)]
        counted = np.ones_like(usual)
    slowdown = float(measured[counted].sum() / expected[counted].sum())
    return round(slowdown / fmean(factors(spread)), 4), spread


def engine_of(description: Mapping[str, Any]) -> str:
    """Equal for runs of one engine process."""
    return json.dumps(
        [description.get(name) for name in ("engine", "model", "engine_args", "engine_start_s")]
    )


def _describe(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content
