"""The host table of a case's machine, calibrated on its other runs.

Machines of one model differ in speed, and so do an engine's processes on one machine: by the cores that they
landed on and by what runs beside them.  A calibration of a minute tells; here the step logs of what else the
same engine served stand for it, and of what these do not show, those of engines like it: with its model on
the same machine, with its model on others, with other models on the same one.  The case itself is left out,
and no latency is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from revati.profile.sglang_pipeline_fit import TooFewTurnsError, pipeline_phases
from revati.validate.calibration_runs import Neighbours, neighbours, others
from revati.validate.host_comparison import (
    UNBLOCKED,
    Key,
    Shown,
    joined,
    ranks_of,
    shown_by,
    stalls,
    unslowed,
)
from revati.validate.runs import CalibratedHost, Case, model_shape
from revati.virtual_time.host_table import base_of, name_for

# Above this share of the time of steps that wait for nobody the machine stalls, not a thread now and then for
# another one; then all of its work does, and what takes so long in other steps is such a stall, too.
STALLING = 0.03
# No log shows its cost, and stalls delay it as well.
WAKE, WAKE_REQUESTS = "wake", 8
# Phases that every engine's core runs itself, by which the phases that no log shows are scaled.
COMMON = ("schedule", "update")
# What one engine's steps are of; those that no log shows are to the others as on the median of all machines.
STEPS_OF = {"vllm": ("compiled", "full", "piecewise"), "sglang": ("eager", "full", "piecewise")}
TYPICAL = "rented_xeon"
TYPICAL_REQUESTS, TYPICAL_TOKENS, TYPICAL_LAYERS = 16, 500, 32
NO_NEIGHBOURS = Neighbours()


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
    found = calibrate(runs, base, beside) if runs or beside.same_model or beside.other_models else None
    if found is None:
        return None
    found = with_typical_kinds(found, case.description)
    return CalibratedHost(found.write(out / f"{case.name}.yaml"), found.base, found.runs)


def with_typical_kinds(found: Calibration, description: Mapping[str, Any]) -> Calibration:
    """Add kinds of steps that no log shows, relative to the shown ones as on the typical machine."""
    engine: str = description["engine"]
    table = unslowed(name_for(TYPICAL, engine))

    def typical(phase: str, kind: str) -> float:
        ranks = ranks_of(phase, description)
        step = phase, kind, TYPICAL_REQUESTS, TYPICAL_TOKENS, 1, TYPICAL_LAYERS, ranks
        return table.phase_us(*step) / unslowed(found.base).phase_us(*step)

    by_phase: dict[str, Mapping[str, float]] = {}
    for phase, kinds in found.by_phase.items():
        relative = [kinds[kind] / typical(phase, kind) for kind in STEPS_OF[engine] if kind in kinds]
        by_phase[phase] = kinds
        if relative:
            known = {kind: round(fmean(relative) * typical(phase, kind), 4) for kind in STEPS_OF[engine]}
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


def calibrate(runs: Sequence[Path], base: str, beside: Neighbours = NO_NEIGHBOURS) -> Calibration | None:
    """Compare runs of one engine with a host table; None if their logs tell too little.

    Args:
        base: a table of conf/host, compared at slowdown 1.
        beside: what the engine's own runs do not show costs more or less than there as what both show does.
    """
    logged = [joined(one, base) for one in (runs, beside.same_model, beside.other_models)]
    stalled, stall_us = stalls(next((pairs for pairs in logged if pairs), {}))
    stalling = stalled >= STALLING
    own, same_model, other_models = (shown_by(pairs, stalling) for pairs in logged)
    here = own or same_model or other_models
    common = [one for (phase, _), one in here.items() if phase in COMMON]
    if not common:
        return None
    elsewhere = {}
    for group in beside.elsewhere:
        shown = shown_by(joined(group, base), stalling)
        if shown.keys() - own.keys() - same_model.keys() and _relative({**same_model, **own}, shown):
            elsewhere[tuple(group)] = shown
    known: Mapping[Key, Shown] = {}
    usual: dict[str, float] = {}
    for there in ([own], [same_model], list(elsewhere.values()), [other_models]):
        known = _completed(known, there)
        usual = {phase: _mean(_of(known, phase).values()) for phase in _phases(known)} | usual
    by_phase, spread = {}, {}
    for phase in _phases(known):
        kinds = dict(sorted(_of(known, phase).items()))
        slowdowns = {kind: round(one.slowdown, 4) for kind, one in kinds.items()}
        by_phase[phase] = slowdowns | {"any": round(usual[phase], 4)}
        spread[phase] = {kind: one.spread for kind, one in kinds.items()}
    if stalling:
        wake_us = unslowed(base).phase_us(WAKE, UNBLOCKED, WAKE_REQUESTS)
        spread[WAKE] = {"any": [1.0, 1.0, 1.0, round(stalled, 4), round(1.0 + stall_us / wake_us, 3)]}
    told = (runs, beside.same_model, *elsewhere, beside.other_models)
    names = tuple(run.name for one in told for run in one)
    return Calibration(base, names, round(_mean(common), 4), by_phase, spread)


def _completed(known: Mapping[Key, Shown], groups: Sequence[Mapping[Key, Shown]]) -> dict[Key, Shown]:
    """What is known of an engine, and of what isn't what others show, faster or slower by what both show.

    Args:
        groups: of the others; the median of them tells.
    """
    told: dict[Key, list[Shown]] = {}
    for there in groups:
        for phase in _phases(there):
            mine, theirs = _of(known, phase), _of(there, phase)
            relative = _relative(mine, theirs) or _relative(known, there) or 1.0
            for kind in theirs.keys() - mine.keys():
                slowdown = relative * theirs[kind].slowdown
                told.setdefault((phase, kind), []).append(replace(theirs[kind], slowdown=slowdown))
    return {**known, **{key: _median(several) for key, several in told.items()}}


def _median(several: Sequence[Shown]) -> Shown:
    ordered = sorted(several, key=lambda one: one.slowdown)
    return replace(ordered[len(ordered) // 2], slowdown=median(one.slowdown for one in ordered))


def _phases(shown: Mapping[Key, Shown]) -> list[str]:
    return sorted({phase for phase, _ in shown})


def _of(shown: Mapping[Key, Shown], phase: str) -> dict[str, Shown]:
    return {kind: one for (name, kind), one in shown.items() if name == phase}


def _relative(own: Mapping[Any, Shown], there: Mapping[Any, Shown]) -> float:
    """How much slower an engine is than others in what both show, weighted by its steps; 0 if nothing."""
    both = own.keys() & there.keys()
    elsewhere = sum(own[key].steps * there[key].slowdown for key in both)
    return sum(own[key].steps * own[key].slowdown for key in both) / elsewhere if both else 0.0


def _mean(shown: Iterable[Shown]) -> float:
    """Weighted by the number of steps."""
    known = list(shown)
    return sum(one.slowdown * one.steps for one in known) / sum(one.steps for one in known)


def _write(content: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110))
    return path
