"""Phases of an engine's steps as its logs show them, beside what a host table says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revati.validate import host_log, turns
from revati.validate.calibration_runs import describe
from revati.validate.phase_costs import PhaseCosts
from revati.validate.runs import model_shape
from revati.virtual_time.host import WORKER_PHASES
from revati.virtual_time.host_table import HostTable
from revati.virtual_time.spread import QUANTILES, factors

LEAST_STEPS = 20
# A step that takes so many times as long as most of its like (hosts have fast times and slow ones) waited for
# something, but for steps of one graph, whose host waits for nobody: it stalled.
BLOCKED, MOST = 2.0, 0.75
UNBLOCKED = "full"

Key = tuple[str, str]  # phase, kind
Pairs = NDArray[np.float64]  # (n, 2): measured, by the table; in µs


@dataclass(frozen=True, slots=True)
class Shown:
    """What logs tell of a phase in one kind of steps."""

    slowdown: float
    spread: Sequence[float]
    steps: int


def joined(runs: Sequence[Path], base: str) -> dict[Key, Pairs]:
    """What the logs of runs show, beside what a table says."""
    by_key: dict[Key, list[Pairs]] = {}
    for run in runs:
        for key, pairs in _paired(run, base).items():
            by_key.setdefault(key, []).append(pairs)
    return {key: np.concatenate(parts) for key, parts in by_key.items()}


def shown_by(logged: Mapping[Key, Pairs], stalling: bool) -> dict[Key, Shown]:
    """What logs show often enough."""
    return {
        (phase, kind): Shown(*_compare(pairs, stalling or kind == UNBLOCKED), len(pairs))
        for (phase, kind), pairs in logged.items()
        if len(pairs) >= LEAST_STEPS
    }


@cache  # all cases of a machine ask for its runs
def _paired(run: Path, base: str) -> Mapping[Key, Pairs]:
    """What a run's log tells of each phase and kind, beside what a table says."""
    description = describe(run)
    found: dict[Key, list[Pairs]] = {}
    for costs in _logged(run, description):
        for phase in costs.phases:
            found.setdefault((phase, costs.kind), []).append(_pairs(costs, unslowed(base), description))
    return {key: np.concatenate(parts) for key, parts in found.items()}


@cache
def unslowed(base: str) -> HostTable:
    """A table of conf/host at slowdown 1."""
    return HostTable.load(base, slowdown=1.0)


def _logged(run: Path, description: Mapping[str, Any]) -> list[PhaseCosts]:
    if description["engine"] == "vllm":
        return host_log.read(run, description)
    log = turns.read(run, description)
    return turns.costs(log) if log else []


def ranks_of(phase: str, description: Mapping[str, Any]) -> int:
    """How many ranks a phase of a run is shared by: a worker knows its stage, the core all of them."""
    stages = 1 if phase in WORKER_PHASES else int(description["pipeline_parallel_size"])
    return stages * int(description["tensor_parallel_size"])


def _pairs(costs: PhaseCosts, table: HostTable, description: Mapping[str, Any]) -> Pairs:
    stages = int(description["pipeline_parallel_size"])
    layers = math.ceil(model_shape(description["model"]).num_hidden_layers / stages)
    shapes = np.column_stack([costs.requests, costs.prompt_tokens, costs.prefills])
    expected = sum(
        table.costs_us(phase, costs.kind, shapes, layers, ranks_of(phase, description))
        for phase in costs.phases
    )
    return np.column_stack([np.asarray(costs.cost_us, np.float64), expected])


def stalls(logged: Mapping[Key, Pairs]) -> tuple[float, float]:
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
