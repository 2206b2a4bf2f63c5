"""Fit a host table to the logs of a calibration: costs of each phase of an engine step on the target.

    python -m revati.profile.host_fit --runs DIR [DIR ...] --out conf/host/h200_xeon.yaml

A DIR holds one engine's logs as `host_calibration` writes them. A phase's cost is modelled as

    latency + slowdown · (base + requests · per_request + tokens · per_token + prefills · per_prefill
                          + layers · per_layer)

with coefficients that are never negative, fitted to the least absolute relative deviation. A shared host
moves between plateaus for seconds at a time, so every half second has a slowdown of its own, which is
taken out before the fit (1: the quietest engine) and reported as levels of the table.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import yaml
from scipy.optimize import nnls  # type: ignore[import-untyped]

Array = npt.NDArray[np.float64]

TERMS = ("base_us", "per_request_us", "per_token_us", "per_prefill_us", "per_layer_us", "latency_us")
LEVELS = {"quiet": 0.1, "typical": 0.5, "busy": 0.9}  # quantiles of the slowdown over all half seconds
WINDOW_S = 0.5
MOST_LAYERS_QUEUED = 48  # deeper models fill the launch queue, and then an execute phase waits for the GPU


@dataclass
class Samples:
    """Observations of one phase and kind: cost in µs, features, and the moment."""

    cost_us: list[Array] = field(default_factory=list)
    features: list[Array] = field(default_factory=list)  # each (n, 5): 1, requests, tokens, prefills, layers
    slowdown: list[Array] = field(default_factory=list)

    def add(self, cost_us: Array, features: Array, slowdown: Array) -> None:
        keep = np.isfinite(cost_us) & (cost_us > 0)
        self.cost_us.append(cost_us[keep])
        self.features.append(features[keep])
        self.slowdown.append(slowdown[keep])


@dataclass
class Run:
    """One calibrated engine."""

    name: str
    steps: dict[str, Array]
    graph: list[str]
    layers: int
    eager: bool
    tensor_parallel_size: int
    folder: Path
    description: dict[str, Any]
    windows: Array = field(default_factory=lambda: np.empty(0))  # half second of each step
    slowdowns: dict[int, float] = field(default_factory=dict)

    def slowdown_at(self, times_s: Array) -> Array:
        """The slowdown of the half second of each time; 1 where there was no step to tell."""
        start = float(np.nanmin(self.steps["input_begin_s"]))
        return np.array([self.slowdowns.get(int((t - start) / WINDOW_S), 1.0) for t in times_s])


def load_run(folder: Path) -> Run:
    """Read one engine's logs."""
    table = pq.read_table(folder / "steps.parquet")
    description = json.loads((folder / "run.json").read_text())
    run = Run(
        name=folder.name,
        steps={n: table[n].to_numpy().astype(np.float64) for n in table.column_names if n != "graph"},
        graph=table["graph"].to_pylist(),
        layers=description["num_layers"],
        eager=bool(description["case"]["engine_args"].get("enforce_eager")),
        tensor_parallel_size=description["tensor_parallel_size"],
        folder=folder,
        description=description,
    )
    begin = run.steps["input_begin_s"]
    run.windows = ((begin - np.nanmin(begin)) / WINDOW_S).astype(np.int64).astype(np.float64)
    return run


def phase_costs(run: Run) -> dict[str, Array]:
    """Cost of each phase of each step in µs; together they tile the engine core's loop without waits."""
    s = run.steps
    next_input = np.append(s["input_begin_s"][1:], np.nan)
    next_step = np.append(s["step_begin_s"][1:], np.nan)
    no_message = np.append(np.isnan(s["input_first_s"][1:]), False)
    after_sample = np.where(np.isnan(s["wait_begin_s"]), s["step_end_s"], s["wait_begin_s"])
    last = np.where(np.isnan(s["update_end_s"]), s["step_end_s"], s["update_end_s"])
    costs = {
        "schedule": s["schedule_end_s"] - s["step_begin_s"],
        "execute": s["execute_end_s"] - s["schedule_end_s"],
        "sample": after_sample - s["execute_end_s"],
        "wake": s["update_begin_s"] - s["wake_s"],
        "update": s["update_end_s"] - s["update_begin_s"],
        "output": np.where(no_message, next_step, next_input) - last,
    }
    return {phase: cost * 1e6 for phase, cost in costs.items()}


def kinds(run: Run) -> npt.NDArray[np.str_]:
    """How the model ran in each step: full, piecewise, compiled, eager, or idle (nothing scheduled)."""
    ran = {"FULL": "full", "PIECEWISE": "piecewise", "NONE": "eager" if run.eager else "compiled"}
    tokens = run.steps["scheduled_tokens"]
    return np.array(["idle" if t == 0 else ran.get(g, "") for t, g in zip(tokens, run.graph, strict=True)])


def step_features(run: Run, updated: bool) -> Array:
    """Features (n, 5) of each step, or of the step whose outputs it updates."""
    s = run.steps
    rows = np.arange(len(run.graph))
    if updated:
        at = {int(step): row for row, step in enumerate(s["step"])}
        rows = np.array([at.get(int(step), -1) for step in s["update_step"]])
    ones = np.ones(len(rows))
    columns = [s[name][rows] for name in ("scheduled_requests", "prefill_tokens", "prefill_requests")]
    return np.stack([ones, *columns, np.full(len(rows), run.layers, np.float64)], axis=1)


def set_slowdowns(runs: list[Run], reference: list[Run]) -> None:
    """Estimate each half second's slowdown from phases that depend on the batch alone.

    Schedule, sample and update of full-graph decode steps (of all steps where nothing else ran) cost the
    same in every engine; the reference runs' median is 1.
    """

    def observed(run: Run) -> tuple[Array, Array, Array]:
        costs, kind = phase_costs(run), kinds(run)
        total = costs["schedule"] + costs["sample"] + costs["update"]
        use = np.isin(kind, ("full", "eager")) & (run.steps["prefill_requests"] == 0) & np.isfinite(total)
        use &= run.steps["scheduled_requests"] <= 256
        return total[use], run.steps["scheduled_requests"][use], run.windows[use]

    parts = [observed(run) for run in reference]
    total = np.concatenate([p[0] for p in parts])
    requests = np.concatenate([p[1] for p in parts])
    features = np.stack([np.ones(len(requests)), requests], axis=1)
    model = least_absolute_relative(features, total)
    for run in runs:
        cost, batch, windows = observed(run)
        ratio = cost / (model[0] + model[1] * batch)
        known = {
            int(w): float(np.median(ratio[windows == w]))
            for w in np.unique(windows)
            if (windows == w).sum() >= 5
        }
        # A window without enough decode steps has the slowdown of the nearest one that has.
        keys = np.array(sorted(known))
        run.slowdowns = {
            int(w): known[int(keys[np.argmin(np.abs(keys - w))])] for w in range(int(run.windows.max()) + 1)
        }


def least_absolute_relative(features: Array, cost: Array) -> Array:
    """Non-negative coefficients that minimise the sum of |cost / prediction - 1|: a median fit.

    Few large batches count as much as many small ones: every observation is weighted by the inverse root
    of how often its features occur.
    """
    scale = np.maximum(features.max(axis=0), 1e-9)
    _, inverse, counts = np.unique(np.round(features, 3), axis=0, return_inverse=True, return_counts=True)
    rarity = 1.0 / np.sqrt(counts[inverse.ravel()])
    scaled, expected = features / scale, cost.copy()
    coefficients: Array = np.zeros(features.shape[1])
    for _ in range(40):
        residual = np.abs(cost - scaled @ coefficients) / expected
        root = np.sqrt(rarity / np.maximum(residual, 1e-3)) / expected
        coefficients, _ = nnls(scaled * root[:, None], cost * root)
        # Relative to the prediction, not to the observation: else a low prediction always wins.
        expected = np.maximum(scaled @ coefficients, 1e-3)
    result: Array = coefficients / scale
    return result


def collect(runs: list[Run]) -> dict[tuple[str, str], Samples]:
    """Gather the observations of every engine phase and kind from single-GPU runs."""
    samples: dict[tuple[str, str], Samples] = {}
    for run in runs:
        costs, kind = phase_costs(run), kinds(run)
        slowdown = run.slowdown_at(run.steps["input_begin_s"])
        own, updated = step_features(run, False), step_features(run, True)
        updated_kind = kind_of_update(run, kind)
        costs["collect"] = np.where(run.steps["gpu_was_done"] == 1, costs["wake"], np.nan)
        costs["wake"] = np.where(run.steps["gpu_was_done"] == 0, costs["wake"], np.nan)
        queued = np.zeros(len(kind), np.bool_)
        if run.layers > MOST_LAYERS_QUEUED:
            queued = np.append([False], kind[:-1] == "compiled")
        for name in ("full", "piecewise", "compiled", "eager", "idle"):
            for phase, cost in costs.items():
                late = phase in ("wake", "collect", "update", "output")
                use = (updated_kind if late else kind) == name
                if phase == "execute":
                    use = use & ~queued
                features = (updated if late else own)[use]
                samples.setdefault((phase, name), Samples()).add(cost[use], features, slowdown[use])
    return samples


def kind_of_update(run: Run, kind: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """The kind of the step whose outputs each step updates; "" where it updates none."""
    of_step = dict(zip(run.steps["step"].astype(int), kind, strict=True))
    return np.array([of_step.get(int(step), "") for step in run.steps["update_step"]])


def message_samples(runs: list[Run]) -> dict[tuple[str, str], Samples]:
    """Gather what messages between the frontend and the engine core cost, both ways."""
    samples: dict[tuple[str, str], Samples] = {}
    for run in runs:
        rows = joined_requests(run)
        at = {int(step): i for i, step in enumerate(run.steps["step"])}
        for row in rows:
            step = at.get(row["step"])
            if step is None:
                continue
            waiting = run.steps["input_begin_s"][step] < row["decode_begin_s"]
            costs = {"frontend_submit": row["sent_s"] - row["submitted_s"]} if row["alone"] else {}
            if waiting and row["alone"]:
                costs["ipc"] = row["added_begin_s"] - row["sent_s"]
                costs["input"] = run.steps["step_begin_s"][step] - row["added_begin_s"]
            elif not waiting:
                if row["alone"]:
                    costs["ipc"] = row["decode_end_s"] - row["sent_s"]
                costs["input"] = row["added_end_s"] - row["added_begin_s"]
            kind = "idle" if waiting else "busy"
            slowdown = run.slowdown_at(np.array([row["sent_s"]]))
            features = np.array([[1.0, 0.0, row["prompt_tokens"], 0.0, 0.0]])
            for phase, cost in costs.items():
                if phase == "input" and waiting and run.steps["added_requests"][step] != 1:
                    continue
                samples.setdefault((phase, kind), Samples()).add(np.array([cost * 1e6]), features, slowdown)
        for phase, cost, batch, time_s in frontend_batches(run):
            features = np.zeros((len(cost), 5))
            features[:, 0], features[:, 1] = 1.0, batch
            samples.setdefault((phase, "any"), Samples()).add(cost, features, run.slowdown_at(time_s))
        sent = np.array([row["sent_s"] for row in rows])
        gaps = np.diff(sent)
        burst = gaps < 0.5e-3  # sent one after the other, without a pause for arrivals
        features = np.zeros((int(burst.sum()), 5))
        features[:, 0] = 1.0
        features[:, 2] = np.array([row["prompt_tokens"] for row in rows])[1:][burst]
        samples.setdefault(("frontend_submit", "busy"), Samples()).add(
            gaps[burst] * 1e6, features, run.slowdown_at(sent[1:][burst])
        )
    return samples


def joined_requests(run: Run) -> list[dict[str, Any]]:
    """One row a request, in the order of sending, with its times on both sides."""
    core: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(run.folder / "core_requests.parquet").to_pylist():
        prefix = "added" if row["event"] == "added" else "decode"
        entry = core.setdefault(row["request_id"], {})
        entry[f"{prefix}_begin_s"], entry[f"{prefix}_end_s"] = row["begin_s"], row["end_s"]
        if prefix == "added":
            entry["step"] = row["step"]
    client = {row["request_id"]: row for row in pq.read_table(run.folder / "requests.parquet").to_pylist()}
    rows = []
    for row in pq.read_table(run.folder / "frontend_requests.parquet").to_pylist():
        seen = client.get(row["request_id"].rsplit("-", 1)[0])
        entry = core.get(row["request_id"], {})
        if seen and "added_begin_s" in entry and "decode_begin_s" in entry:
            alone = seen["segment"].startswith(("lone", "poisson_5", "poisson_15"))
            rows.append(
                row | entry | {key: seen[key] for key in ("submitted_s", "arrival_s")} | {"alone": alone}
            )
    return sorted(rows, key=lambda row: row["sent_s"])


def frontend_batches(run: Run) -> list[tuple[str, Array, Array, Array]]:
    """Costs in µs of the way from the engine core's outputs to the client's tokens, a row a batch.

    Returns (phase, costs, requests, times): output_ipc (outputs made → frontend has them), frontend_busy
    (frontend has them → last token delivered), frontend_token (outputs made → mean token delivered).
    """
    table = pq.read_table(run.folder / "frontend_batches.parquet")
    table = table.filter(pa.compute.greater(table["requests"], 0))
    column = {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
    times = pq.read_table(run.folder / "requests.parquet")["token_times_s"].combine_chunks()
    tokens = np.sort(times.flatten().to_numpy())
    batch_of = np.searchsorted(column["processed_s"], tokens, side="right") - 1
    count = np.bincount(batch_of[batch_of >= 0], minlength=len(table))
    total = np.bincount(batch_of[batch_of >= 0], tokens[batch_of >= 0], minlength=len(table))
    last = np.zeros(len(table))
    np.maximum.at(last, batch_of[batch_of >= 0], tokens[batch_of >= 0])
    # Above 128 requests the frontend works in chunks and tokens leave before the batch is processed.
    ok = (count == column["requests"]) & (column["requests"] <= 128) & (column["backlog"] == 0)
    made, received = column["core_stamp_s"][ok], column["received_s"][ok]
    batch = column["requests"][ok]
    return [
        ("output_ipc", (received - made) * 1e6, batch, made),
        ("frontend_busy", (last[ok] - received) * 1e6, batch, made),
        ("frontend_token", (total[ok] / count[ok] - made) * 1e6, batch, made),
    ]


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


def waits_us(runs: list[Run]) -> tuple[float, int]:
    """Median time from the GPU's last copy of a step to the return of the host's wait, and how many.

    From the traced scenes: the copy's end and the end of cudaEventSynchronize on one clock.
    """
    delays: list[float] = []
    for run in runs:
        path = run.folder / "scenes"
        if not (path / "activities.parquet").exists():
            continue
        activities = pq.read_table(path / "activities.parquet").to_pylist()
        calls = pq.read_table(path / "calls.parquet").to_pylist()
        ends: dict[str, list[float]] = {}
        for a in activities:
            if a["kind"] == "gpu_memcpy" and "DtoH" in a["name"]:
                ends.setdefault(a["scene"], []).append(a["ts_us"] + a["dur_us"])
        for call in calls:
            if call["name"] != "cudaEventSynchronize" or call["dur_us"] < 300:
                continue
            begin, end = call["ts_us"], call["ts_us"] + call["dur_us"]
            if inside := [e for e in ends.get(call["scene"], []) if begin < e < end]:
                delays.append(end - max(inside))
    return (float(np.median(delays)), len(delays)) if delays else (0.0, 0)


Factors = dict[str, dict[str, dict[int, float]]]


def tensor_parallel_factors(runs: list[Run], phases: Phases) -> Factors:
    """Costs of tensor-parallel engines relative to what the table says for one GPU: phase → kind → ranks.

    Workers have processes of their own there. `execute` is the slowest rank's execute_model and the pause
    after it, `sample` the slowest rank's sample_tokens; `schedule` and `update` run in a core that has its
    caches to itself. The slowdown of these runs counts as 1. Above
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
    a worker that waits for the message shows it. The slowdown of these runs counts as 1.
    """
    costs: dict[str, list[Array]] = {"dispatch": [], "dispatch_sample": [], "worker_ipc": []}
    features: list[Array] = []
    for run in runs:
        s = run.steps
        use = s["scheduled_tokens"] > 0
        worker = pq.read_table(run.folder / "worker_0.parquet")
        begins, ends = (worker[f"{name}_s"].to_numpy() for name in ("execute_begin", "sample_end"))
        features.append(step_features(run, updated=False)[use])
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
    return result


def predicted(entry: dict[str, float], features: Array) -> Array:
    """A fitted phase's cost in µs at slowdown 1 for features (n, 6) in the order of TERMS."""
    result: Array = features @ np.array([entry.get(term, 0.0) for term in TERMS])
    return result


def make_table(runs: list[Run], ranked: list[Run], reference: list[Run], name: str) -> dict[str, Any]:
    """Build the table that `HostTable` reads, from single-GPU runs and tensor-parallel ones."""
    set_slowdowns(runs, reference)
    phases = fit(collect(runs)) | fit(message_samples(runs)) | worker_messages(ranked)
    wait, waits = waits_us(runs)
    for entry in phases["wake"].values():
        entry["latency_us"] = round(wait, 1)
        del entry["spread"]  # it would be that of the small rest after the wait
    slowdowns = np.array([s for run in runs for s in run.slowdowns.values()])
    late = [
        (row["submitted_s"] - row["arrival_s"]) * 1e6
        for run in runs
        for row in joined_requests(run)
        if row["alone"]
    ]
    phases["arrival"] = {"any": {"latency_us": round(float(np.median(late)), 1), "samples": len(late)}}
    return {
        "name": name,
        "slowdowns": {level: round(float(np.quantile(slowdowns, q)), 3) for level, q in LEVELS.items()},
        "level": "typical",
        "tensor_parallel": tensor_parallel_factors(ranked, phases),
        "gpu_wait_us": {"median": round(wait, 1), "samples": waits},
        "provenance": [
            {
                "run": run.name,
                "recorded_at": run.description["recorded_at"],
                "cpu": run.description["cpu"],
                "cpus": run.description["cpus"],
                "gpu": run.description["gpu"],
                "engine": f"{run.description['engine']} {run.description['engine_version']}",
                "torch": run.description["torch"],
                "python": run.description["python"],
                "layers": run.layers,
                "steps": len(run.graph),
                "tensor_parallel_size": run.tensor_parallel_size,
                "slowdown": [
                    round(float(q), 3)
                    for q in np.quantile(list(run.slowdowns.values()) or [1.0], (0.1, 0.5, 0.9))
                ],
            }
            for run in [*runs, *ranked]
        ],
        "phases": phases,
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of calibrated engines")
    parser.add_argument(
        "--reference", nargs="+", help="names of the runs whose slowdown is 1 (default: the first)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the table to write, e.g. conf/host/h200_xeon.yaml"
    )
    arguments = parser.parse_args(argv)
    every = [load_run(folder) for folder in arguments.runs]
    runs = [run for run in every if run.tensor_parallel_size == 1]
    ranked = [run for run in every if run.tensor_parallel_size > 1]
    wanted = arguments.reference or [runs[0].name]
    reference = [run for run in runs if run.name in wanted]
    if not reference:
        parser.error(f"--reference: none of {', '.join(wanted)} among {', '.join(run.name for run in runs)}")
    table = make_table(runs, ranked, reference, arguments.out.stem)
    arguments.out.write_text(
        "# Made by python -m revati.profile.host_fit; see revati/virtual_time/host_table.py.\n"
        + yaml.safe_dump(table, sort_keys=False, width=110, default_flow_style=None)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
