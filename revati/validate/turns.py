"""What a measured run of SGLang tells: the turns of its scheduler's event loop, of ranks the slowest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.profile.sglang_host_logs import Log, of_slowest_rank, samples_of, turn_us
from revati.validate.phase_costs import PhaseCosts
from revati.validate.steps import Steps, with_periods


def read(folder: Path, description: Mapping[str, Any]) -> Log | None:
    """A run's turns and its requests' tokens from its tables (see `revati.profile.truth.pack`).

    None for pipelines, whose turns are full of waiting for the neighbours.
    """
    if description["pipeline_parallel_size"] > 1:
        return None
    turns = pq.read_table(folder / "steps.parquet")
    rank = np.asarray(turns["rank"])
    ranks = [_columns(turns.filter(pa.array(rank == one))) for one in np.unique(rank)]
    requests = pq.read_table(folder / "requests.parquet", columns=["arrival_s", "token_times_us"])
    tokens = [
        {"token_times_s": [row["arrival_s"] + 1e-6 * time for time in row["token_times_us"]]}
        for row in requests.to_pylist()
    ]
    return Log(of_slowest_rank(ranks), tokens, dict(description))


def _columns(turns: pa.Table) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in turns.column_names:
        if name.endswith("_us") and name != "send_wait_us":
            times_us = turns[name].cast(pa.float64()).fill_null(float("nan"))
            columns[f"{name.removesuffix('_us')}_s"] = 1e-6 * times_us.to_numpy()
        else:
            columns[name] = turns[name].to_numpy()
    return columns


def costs(log: Log) -> list[PhaseCosts]:
    """Costs of all phases that turns tell, as the host table has them."""
    found = []
    for (phase, kind), sample in samples_of(log).items():
        if sample.cost_us and len(cost_us := np.concatenate(sample.cost_us)):
            counts = np.concatenate(sample.features).astype(np.int64)
            found.append(PhaseCosts((phase,), kind, cost_us, counts[:, 1], counts[:, 2], counts[:, 3]))
    return found


def steps(log: Log) -> Steps:
    """The turns that launched a batch."""
    turns = log.steps
    kind = log.kinds("mode")
    phases = {
        "schedule": log.us("schedule_begin_s", "run_begin_s") + turn_us(log),  # with the ranks' broadcast
        "execute": log.us("run_begin_s", "run_end_s"),
        "sample": np.zeros(len(kind)),  # launched with the forward pass
        "update": log.us("wake_s", "process_end_s"),
    }
    size = np.where(kind == "full", turns["requests"], turns["tokens"])
    moments = (1e6 * turns[name] for name in ("begin_s", "wake_s", "end_s"))
    every = with_periods(kind, size, phases, log.us("process_begin_s", "wake_s"), *moments)
    return every.chosen(turns["requests"] > 0)
