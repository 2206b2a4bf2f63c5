"""A linear model of each phase's cost, and what tensor parallelism makes of it."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from revati.profile.host_logs import Array, Run
from revati.profile.host_samples import Samples
from revati.profile.regression import least_absolute_relative

TERMS = ("base_us", "per_request_us", "per_token_us", "per_prefill_us", "per_layer_us", "latency_us")

# Which terms a phase may depend on, in the order of TERMS. Waking a thread of another process takes a
# latency that doesn't follow the slowdown of running code.
ALLOWED = {
    "schedule": (1, 1, 1, 1, 0, 0),
    "execute": (1, 1, 0, 1, 1, 0),
    "sample": (1, 1, 0, 1, 0, 0),
    "wake": (1, 1, 0, 0, 0, 0),
    "collect": (1, 1, 0, 0, 0, 0),
    "update": (1, 1, 0, 0, 0, 0),
    "output": (1, 1, 0, 0, 0, 0),
    "input": (1, 0, 1, 0, 0, 0),
    "ipc": (1, 0, 1, 0, 0, 1),
    "frontend_submit": (1, 0, 1, 0, 0, 0),
    "output_ipc": (1, 1, 0, 0, 0, 1),
    "frontend_busy": (1, 1, 0, 0, 0, 0),
    "frontend_token": (1, 1, 0, 0, 0, 1),
}

Phases = dict[str, dict[str, dict[str, float]]]
Factors = dict[str, dict[str, dict[int, float]]]


def fit(samples: dict[tuple[str, str], Samples], least: int = 20) -> Phases:
    """Fit each phase and kind that has enough observations."""
    result: Phases = {}
    for (phase, kind), sample in sorted(samples.items()):
        cost, slowdown = np.concatenate(sample.cost_us), np.concatenate(sample.slowdown)
        features = np.concatenate(sample.features)
        if len(cost) < least:
            continue
        features = np.column_stack([features, 1.0 / slowdown])
        allowed = np.array(ALLOWED[phase], np.bool_)
        if not (features[:, 3] > 0).any():
            allowed[2:4] &= phase in ("input", "ipc", "frontend_submit")
        if len(np.unique(features[:, 4])) < 2:
            allowed[4] = False
        coefficients = np.zeros(len(TERMS))
        coefficients[allowed] = least_absolute_relative(features[:, allowed], cost / slowdown)
        ratio = cost / slowdown / (features @ coefficients)
        entry = {t: round(float(c), 4) for t, c in zip(TERMS, coefficients, strict=True) if c > 0}
        entry["samples"] = len(cost)
        entry["spread"] = [round(float(q), 3) for q in np.quantile(ratio, (0.1, 0.5, 0.9))]  # type: ignore[assignment]
        result.setdefault(phase, {})[kind] = entry
    return result


def tensor_parallel_factors(runs: list[Run], phases: Phases) -> Factors:
    """Costs of tensor-parallel engines relative to what the table says for one GPU: phase → kind → ranks.

    Workers have processes of their own there. `execute` is the core's dispatch, the slowest rank's
    execute_model and the pause after it, `sample` the slowest rank's sample_tokens; `schedule` and
    `update` run in a core that has its caches to itself. The slowdown of these runs counts as 1. Above
    the measured numbers of ranks the last doubling is repeated once.
    """
    factors: Factors = {}
    for run in sorted(runs, key=lambda run: run.tensor_parallel_size):
        for (phase, kind), ratio in rank_ratios(run, phases).items():
            factors.setdefault(phase, {}).setdefault(kind, {})[run.tensor_parallel_size] = round(ratio, 3)
    for by_kind in factors.values():
        for given in by_kind.values():
            *_, before, last = 1, *sorted(given)
            given[2 * last] = round(given[last] + max(given[last] - given.get(before, 1.0), 0.0), 3)
    return factors


def rank_ratios(run: Run, phases: Phases) -> dict[tuple[str, str], float]:
    """Median cost of one tensor-parallel run relative to the table, by phase and kind."""
    tables = [pq.read_table(path) for path in sorted(run.folder.glob("worker_*.parquet"))]
    fewest = min(len(table) for table in tables)
    # The first rows are of the start-up, and their number differs between ranks.
    ranks = [{n: t[n].to_numpy()[-fewest:] for n in t.column_names} for t in tables]
    requests, tokens = ranks[0]["scheduled_requests"], ranks[0]["scheduled_tokens"]
    largest_graph = max(run.description["resolved"]["cudagraph_capture_sizes"])
    decodes = ranks[0]["most_tokens"] == 1
    kind = np.where(tokens > largest_graph, "compiled", np.where(decodes, "full", "piecewise"))
    kind[tokens == 0] = "idle"
    begin, end = (np.stack([r[f"execute_{edge}_s"] for r in ranks]) for edge in ("begin", "end"))
    sampling = np.stack([r["sample_end_s"] - r["sample_begin_s"] for r in ranks]).max(axis=0)
    execute = (end - begin).max(axis=0) + ranks[0]["sample_begin_s"] - ranks[0]["execute_end_s"]
    s = run.steps
    execute += float(np.nanmedian(s["sample_end_s"] - s["schedule_end_s"]))
    core_kind = np.where(s["prefill_requests"] > 0, "prefill", "full")
    core_kind[(s["scheduled_tokens"] == 0) | (s["scheduled_tokens"] > largest_graph)] = ""

    ratios: dict[tuple[str, str], float] = {}
    layers = np.full(len(tokens), run.layers)
    zeros = np.zeros(len(tokens))
    for name in ("full", "piecewise", "compiled"):
        use = kind == name
        prefills = np.where(decodes, 0, 1)
        features = np.stack([zeros + 1, requests, zeros, prefills, layers, zeros + 1], axis=1)[use]
        for phase, cost in (("execute", execute), ("sample", sampling)):
            ratios[phase, name] = float(np.median(cost[use] * 1e6 / predicted(phases[phase][name], features)))
    use = core_kind == "full"
    ones, batch = np.ones(int(use.sum())), s["scheduled_requests"][use]
    features = np.stack([ones, batch, 0 * ones, 0 * ones, 0 * ones, ones], axis=1)
    for phase in ("schedule", "update"):
        cost = s[f"{phase}_end_s"][use] - s[f"{phase}_begin_s"][use]
        ratios[phase, "any"] = float(np.nanmedian(cost * 1e6 / predicted(phases[phase]["full"], features)))
    return ratios


def predicted(entry: dict[str, float], features: Array) -> Array:
    """A fitted phase's cost in µs at slowdown 1 for features (n, 6) in the order of TERMS."""
    result: Array = features @ np.array([entry.get(term, 0.0) for term in TERMS])
    return result
