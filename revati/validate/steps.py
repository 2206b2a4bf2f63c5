"""Engine steps of emulation and measurement compared by kind and size, so that no two errors cancel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from revati.profile.host_logs import kinds_by_graph
from revati.validate.markdown import number, table

Array = npt.NDArray[np.float64]

PHASES = ("schedule", "execute", "sample", "update")
COSTS = (*PHASES, "wait", "gpu", "period")
SHOWN = ("host", *PHASES, "gpu", "period")
# Upper ends of size classes: requests of full graphs, scheduled tokens of the other kinds.
FULL_SIZES = (1, 4, 16, 64, 128, 256, 512)
TOKEN_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LARGEST_GRAPH = 512  # of vLLM's default capture sizes, where a run doesn't say
SHORTEST_WAIT_US = 300.0  # a shorter one may have ended before the engine looked
LONGEST_GAP_US = 2000.0  # between steps of a busy engine
LEAST_STEPS = 5
ENGINE_CORE = "engine_core"  # the virtual core whose phases a measured log tells of
# Where workers are on cores of their own, or schedulers of several ranks.
BESIDES = {"execute": "dispatch", "sample": "dispatch_sample", "schedule": "broadcast"}


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of an engine core in order.

    kind: of shape (n,), full, piecewise, compiled or eager. size: requests of full graphs, else tokens.
    cost_us: by name in `COSTS`, float64 of shape (n,), NaN where a step has no such cost.
    """

    kind: npt.NDArray[np.str_]
    size: npt.NDArray[np.int64]
    cost_us: Mapping[str, Array]

    @classmethod
    def concatenate(cls, parts: Sequence[Steps]) -> Steps:
        return cls(
            np.concatenate([part.kind for part in parts]),
            np.concatenate([part.size for part in parts]),
            {name: np.concatenate([part.cost_us[name] for part in parts]) for name in COSTS},
        )

    def chosen(self, rows: npt.NDArray[np.bool_]) -> Steps:
        """Some of these steps."""
        return Steps(self.kind[rows], self.size[rows], {n: v[rows] for n, v in self.cost_us.items()})

    def of(self, kind: str, low: int, high: int) -> Mapping[str, Array]:
        """Costs of the steps of a kind with low < size ≤ high."""
        return self.chosen((self.kind == kind) & (self.size > low) & (self.size <= high)).cost_us


def measured_steps(log: pa.Table, *, eager: bool, largest_graph: int = LARGEST_GRAPH) -> Steps:
    """Steps of a measured run from its steps.parquet (times in seconds)."""
    log = log.filter(pa.array(np.asarray(log["scheduled_tokens"]) > 0))
    columns = {name: np.asarray(log[name]) for name in log.column_names if name != "graph"}
    tokens, requests = columns["scheduled_tokens"], columns["scheduled_requests"]
    kind = step_kinds(log, eager=eager, largest_graph=largest_graph)
    us = {name: 1e6 * values for name, values in columns.items() if name.endswith("_s")}
    begins = ("schedule_begin_s", "execute_begin_s", "execute_end_s", "update_begin_s")
    ends = ("schedule_end_s", "execute_end_s", "sample_end_s", "update_end_s")
    costs = {name: us[end] - us[begin] for name, begin, end in zip(PHASES, begins, ends, strict=True)}
    wait = us["update_begin_s"] - us["sample_end_s"]
    size = np.where(kind == "full", requests, tokens)
    return with_periods(
        kind, size, costs, wait, us["schedule_begin_s"], us["update_begin_s"], us["step_end_s"]
    )


def graph_settings(description: Mapping[str, Any]) -> tuple[int, bool]:
    """The largest size of vLLM's CUDA graphs in a run, and whether it has none, by its run.json."""
    largest = max(description["resolved"].get("cudagraph_capture_sizes") or [LARGEST_GRAPH])
    return largest, bool(description["engine_args"].get("enforce_eager"))


def step_kinds(log: pa.Table, *, eager: bool, largest_graph: int) -> npt.NDArray[np.str_]:
    """How vLLM ran each step of a steps.parquet: as it says, or else by the step's batch."""
    if "graph" in log.column_names and any(names := log["graph"].to_pylist()):
        return kinds_by_graph(names, eager)
    tokens, decodes = np.asarray(log["scheduled_tokens"]), np.asarray(log["prefill_requests"]) == 0
    return kinds(tokens, decodes, eager=eager, largest_graph=largest_graph)


def kinds(
    tokens: npt.NDArray[np.int64], decodes: npt.NDArray[np.bool_], *, eager: bool, largest_graph: int
) -> npt.NDArray[np.str_]:
    """How vLLM runs batches of so many tokens, of decodes alone or not."""
    graphed = np.where(decodes, "full", "piecewise")
    return np.where((tokens <= largest_graph) & (not eager), graphed, "eager" if eager else "compiled")


def emulated_steps(phases: pa.Table) -> Steps:
    """Steps of an emulated run from its phases.parquet (one row a phase, µs)."""
    phases = phases.filter(pa.array(np.asarray(phases["core"]) == ENGINE_CORE))
    names = np.asarray(phases["phase"])
    begin, end = np.asarray(phases["begin_us"]), np.asarray(phases["end_us"])
    first = np.flatnonzero(names == "schedule")  # a step begins where it is scheduled
    step = np.searchsorted(first, np.arange(len(names)), side="right") - 1
    count = len(first)

    def per_step(chosen: Sequence[str]) -> Array:
        rows = np.isin(names, chosen) & (step >= 0)
        unknown = np.nan if rows.any() else 0.0  # an engine without such a phase
        spent = np.bincount(step[rows], (end - begin)[rows], minlength=count)
        return np.where(np.bincount(step[rows], minlength=count) > 0, spent, unknown)

    def moment(phase: str, times: Array) -> Array:
        rows = (names == phase) & (step >= 0)
        found = np.full(count, np.nan)
        found[step[rows]] = times[rows]
        return found

    last_end = np.full(count, -np.inf)
    rows = (names != "input") & (step >= 0)
    np.maximum.at(last_end, step[rows], end[rows])
    shapes = {
        name: np.asarray(phases[name])[first] for name in ("kind", "requests", "prompt_tokens", "prefills")
    }
    tokens = shapes["prompt_tokens"] + shapes["requests"] - shapes["prefills"]
    steps = with_periods(
        shapes["kind"].astype(np.str_),
        np.where(shapes["kind"] == "full", shapes["requests"], tokens),
        {name: per_step([name, BESIDES.get(name, name)]) for name in PHASES},
        per_step(["wait", "wake", "collect"]),
        begin[first],
        moment("update", begin),
        last_end,
    )
    return steps.chosen(steps.kind != "idle")


def with_periods(
    kind: npt.NDArray[np.str_],
    size: npt.NDArray[np.int64],
    costs: Mapping[str, Array],
    wait_us: Array,
    scheduled_us: Array,
    updated_us: Array,
    ended_us: Array,
) -> Steps:
    """Add what needs the next step: its period, and the GPU's time where that is seen.

    In asynchronous scheduling a step is launched before the wait for the one before it. If both that wait
    and the next one were real, the GPU ran this step from one completion to the other.
    """
    period, gpu = np.full(len(kind), np.nan), np.full(len(kind), np.nan)
    busy = scheduled_us[1:] - ended_us[:-1] < LONGEST_GAP_US
    period[:-1] = np.where(busy, np.diff(scheduled_us), np.nan)
    waited = wait_us > SHORTEST_WAIT_US
    gpu[:-1] = np.where(busy & waited[:-1] & waited[1:], np.diff(updated_us), np.nan)
    return Steps(kind, size, {**costs, "wait": wait_us, "gpu": gpu, "period": period})


def compare(measured: Steps, emulated: Steps, shown: Sequence[str] = SHOWN) -> str:
    """Lay out two sets of steps side by side, a row a kind and size class."""
    header = ["kind", "size", "steps", "emulated"]
    header += [title for name in shown for title in (name, "%")]
    rows = []
    for kind in ("full", "piecewise", "compiled", "eager"):
        low = 0
        for high in FULL_SIZES if kind == "full" else TOKEN_SIZES:
            one, other = measured.of(kind, low, high), emulated.of(kind, low, high)
            label, low = f"{low + 1}–{high}" if high > low + 1 else str(high), high
            counts = len(one["execute"]), len(other["execute"])
            if min(counts) < LEAST_STEPS:
                continue
            cells = [kind, label, *map(str, counts)]
            for name in shown:
                real, virtual = _mean(one, name), _mean(other, name)
                error_pct = 100 * (virtual / real - 1) if real else math.nan
                cells += [number(real, 0), number(error_pct, sign=True)]
            rows.append(cells)
    return table(header, rows)


def _mean(costs: Mapping[str, Array], name: str) -> float:
    """Mean without what isn't known; NaN if too little is."""
    values = np.sum([costs[phase] for phase in PHASES], axis=0) if name == "host" else costs[name]
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) >= LEAST_STEPS else float("nan")
