"""What differs where workers have processes of their own: their phases, and messages to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from revati.profile.host_chunks import of_chunks_us
from revati.profile.host_logs import Array, Run, step_features
from revati.profile.host_model import TERMS, Phases, predicted
from revati.profile.regression import least_absolute_relative
from revati.profile.worker_calls import turnaround

Factors = dict[str, dict[str, dict[int, float]]]


def tensor_parallel_factors(runs: list[Run], phases: Phases, chunk_us: float = 0.0) -> Factors:
    """Costs of tensor-parallel engines relative to what the table says for one GPU: phase → kind → ranks.

    Workers have processes of their own there. `execute` is the slowest rank's execute_model, `sample` its
    sample_tokens; `schedule` and `update` run in a core that has its caches to itself. The slowdown of these
    runs counts as 1. Above the measured numbers of ranks the last doubling is repeated once.

    Args:
        chunk_us: what each chunk of Python's frame stack is of launches, which is left out.
    """
    factors: Factors = {}
    for run in sorted(runs, key=lambda run: run.tensor_parallel_size):
        for (phase, kind), ratio in rank_ratios(run, phases, chunk_us).items():
            factors.setdefault(phase, {}).setdefault(kind, {})[run.tensor_parallel_size] = round(ratio, 3)
    for by_kind in factors.values():
        for given in by_kind.values():
            *_, before, last = 1, *sorted(given)
            given[2 * last] = round(given[last] + max(given[last] - given.get(before, 1.0), 0.0), 3)
    return factors


def rank_ratios(run: Run, phases: Phases, chunk_us: float) -> dict[tuple[str, str], float]:
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
    chunks_s = 1e-6 * np.stack([of_chunks_us(kind, r, chunk_us) for r in ranks])
    execute = (end - begin - chunks_s).max(axis=0)
    s = run.steps
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


def worker_messages(runs: list[Run]) -> Phases:
    """What it takes to hand steps to workers in processes of their own.

    ``dispatch`` and ``dispatch_sample`` occupy the core; ``worker_ipc`` is the way to the worker, where only
    a worker that waits for the message shows it; only a busy one shows the others. The slowdown of these runs
    counts as 1.
    """
    costs: dict[str, list[Array]] = {"dispatch": [], "dispatch_sample": [], "worker_ipc": []}
    features: list[Array] = []
    logs = []
    for run in runs:
        s = run.steps
        use = s["scheduled_tokens"] > 0
        table = pq.read_table(run.folder / "worker_0.parquet")
        worker = {name: table[name].to_numpy() for name in table.column_names}
        begins, ends = (worker[f"{name}_s"] for name in ("execute_begin", "sample_end"))
        of_steps = step_features(run, updated=False)
        logs.append((worker, s, of_steps))
        features.append(of_steps[use])
        costs["dispatch"].append((s["execute_end_s"] - s["schedule_end_s"])[use])
        costs["dispatch_sample"].append((s["sample_end_s"] - s["execute_end_s"])[use])
        after = np.minimum(np.searchsorted(begins, s["execute_begin_s"]), len(begins) - 1)
        waiting = use & (after > 0) & (ends[after - 1] < s["execute_begin_s"])
        costs["worker_ipc"].append((begins[after] - s["execute_end_s"])[waiting])
    result: Phases = {}
    for phase, parts in costs.items():
        cost_us = np.concatenate(parts) * 1e6 if parts else np.zeros(0)
        if phase == "worker_ipc":
            terms = {"base_us": float(np.median(cost_us[cost_us > 0]))} if len(cost_us) else {}
        else:
            batch = np.concatenate(features) if features else np.zeros((0, 5))
            fitted = least_absolute_relative(batch[:, [0, 1, 2]], cost_us) if len(cost_us) else ()
            terms = dict(zip(TERMS, map(float, fitted), strict=False))
        if terms:
            entry = {name: round(value, 4) for name, value in terms.items() if value > 0}
            result[phase] = {"any": entry | {"samples": len(cost_us)}}
    return result | turnaround(logs)


def pipeline_costs(folders: list[Path]) -> Phases:
    """What stages add to a step that they share, from the worker logs of two-stage engines.

    Both stages begin a step together, and the second waits for the first one's hidden states: what it takes
    from there on is its own execution, which the first one's exceeds by ``send``. ``receive`` is the first
    one's share of sampling. The slowdown of these runs counts as 1.
    """
    sends: list[Array] = []
    receives: list[Array] = []
    for folder in folders:
        tables = [pq.read_table(folder / f"worker_{stage}.parquet") for stage in (0, 1)]
        fewest = min(map(len, tables))
        first, second = ({n: t[n].to_numpy()[-fewest:] for n in t.column_names} for t in tables)
        use = (first["most_tokens"] == 1) & (first["scheduled_tokens"] == second["scheduled_tokens"])
        own = second["execute_end_s"] - first["execute_end_s"]
        sends.append((first["execute_end_s"] - first["execute_begin_s"] - own)[use])
        receives.append((first["sample_end_s"] - first["sample_begin_s"])[use])
    return {
        phase: {"any": {"base_us": round(float(np.median(cost)) * 1e6, 1), "samples": len(cost)}}
        for phase, parts in (("send", sends), ("receive", receives))
        if parts and len(cost := np.concatenate(parts))
    }
