"""What one calibrated engine logged: the costs of its phases, its requests' messages, its waits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

Array = npt.NDArray[np.float64]

WINDOW_S = 0.5
LONG_PREFILL_TOKENS = 2048  # take the GPU longer than the host


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
    spans: Sequence[dict[str, Any]] = ()  # of the load's segments: segment, begin_s, end_s
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
    spans = folder / "segments.json"
    run = Run(
        name=folder.name,
        steps={n: table[n].to_numpy().astype(np.float64) for n in table.column_names if n != "graph"},
        graph=table["graph"].to_pylist(),
        layers=description["num_layers"],
        eager=bool(description["case"]["engine_args"].get("enforce_eager")),
        tensor_parallel_size=description["tensor_parallel_size"],
        folder=folder,
        description=description,
        spans=json.loads(spans.read_text()) if spans.is_file() else (),
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
    tokens, by_graph = run.steps["scheduled_tokens"], kinds_by_graph(run.graph, run.eager)
    return np.where(tokens == 0, "idle", by_graph)


def kinds_by_graph(graphs: Sequence[str | None], eager: bool) -> npt.NDArray[np.str_]:
    """How the model ran in steps by vLLM's names of their CUDA graphs; "" where it gives none."""
    ran = {"FULL": "full", "PIECEWISE": "piecewise", "NONE": "eager" if eager else "compiled", "": ""}
    return np.array([ran[graph or ""] for graph in graphs])


def behind_long_prefills(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Of steps with so many tokens (none: nothing launched), those whose launches may wait for the GPU.

    They wait for room in its queue, so that they don't tell what they cost the host.
    """
    steps = np.flatnonzero(tokens)
    behind = np.zeros(len(tokens), np.bool_)
    behind[steps[1:]] = tokens[steps[:-1]] > LONG_PREFILL_TOKENS
    return behind


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


def kind_of_update(run: Run, kind: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """The kind of the step whose outputs each step updates; "" where it updates none."""
    of_step = dict(zip(run.steps["step"].astype(int), kind, strict=True))
    return np.array([of_step.get(int(step), "") for step in run.steps["update_step"]])


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


@dataclass(frozen=True)
class LockFree:
    """The times in s in which the engine core's main thread let its other threads run, in order."""

    begin_s: Array
    end_s: Array

    def covers(self, begin_s: Array, end_s: Array) -> npt.NDArray[np.bool_]:
        """Whether each span lies in one of them."""
        at = np.searchsorted(self.begin_s, begin_s, side="right") - 1
        covered: npt.NDArray[np.bool_] = (at >= 0) & (end_s <= self.end_s[np.maximum(at, 0)])
        return covered

    def first(self, times_s: Array) -> Array:
        """The first of them at or after each time, up to the begin of the next one."""
        at = np.searchsorted(self.begin_s, times_s, side="right")
        free = self.covers(times_s, times_s)
        begins = np.append(self.begin_s, np.nan)
        first: Array = np.where(free, times_s, begins[at])
        return first


def lock_free(run: Run) -> LockFree:
    """When threads that receive and send could run: while the core waited, or launched kernels itself."""
    s = run.steps
    at_work = s["execute_begin_s" if run.tensor_parallel_size == 1 else "wait_begin_s"]
    begin = np.concatenate([s["input_begin_s"], at_work])
    end = np.concatenate([s["input_first_s"], np.where(np.isnan(s["wake_s"]), s["step_end_s"], s["wake_s"])])
    order = np.argsort(begin)
    keep = order[np.isfinite(begin[order]) & np.isfinite(end[order])]
    return LockFree(begin[keep], end[keep])


def frontend_batches(run: Run) -> list[tuple[str, Array, Array, Array]]:
    """Costs in µs of the way from the engine core's outputs to the client's tokens, a row a batch.

    Returns (phase, costs, requests, times): output_ipc (outputs sent → frontend has them), frontend_busy
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
        ("output_ipc", (received - lock_free(run).first(made)) * 1e6, batch, made),
        ("frontend_busy", (last[ok] - received) * 1e6, batch, made),
        ("frontend_token", (total[ok] / count[ok] - made) * 1e6, batch, made),
    ]


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
