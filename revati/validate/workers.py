"""Host time of workers that are processes of their own, in the form of `Steps`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from revati.validate.steps import COSTS, ENGINE_CORE, Array, Steps, kinds

SHOWN = ("execute", "sample")
# The phases of an emulated worker that one call of a real one makes up.
CALLS = {"execute": ("execute", "send"), "sample": ("sample", "receive")}


def measured_calls(calls: pa.Table, *, tensor_parallel: int, eager: bool, largest_graph: int) -> Steps:
    """Calls of a measured run from its workers.parquet; of tensor-parallel ranks the slowest one counts."""
    columns = {name: np.asarray(calls[name]) for name in calls.column_names}
    parts = []
    for first in range(0, int(columns["rank"].max()) + 1, tensor_parallel):
        ranks = [columns["rank"] == rank for rank in range(first, first + tensor_parallel)]
        count = min(int(rank.sum()) for rank in ranks)
        slowest = {
            name: np.max([columns[f"{name}_us"][rank][:count] for rank in ranks], axis=0) for name in SHOWN
        }
        tokens, requests, most = (
            columns[name][ranks[0]][:count]
            for name in ("scheduled_tokens", "scheduled_requests", "most_tokens")
        )
        kind = kinds(tokens, most == 1, eager=eager, largest_graph=largest_graph)
        steps = _steps(kind, np.where(kind == "full", requests, tokens), slowest)
        parts.append(steps.chosen(tokens > 0))
    return Steps.concatenate(parts)


def emulated_calls(phases: pa.Table) -> Steps | None:
    """Calls of an emulated run from its phases.parquet; None where the worker is in the engine core."""
    works = np.isin(np.asarray(phases["phase"]), [phase for call in CALLS.values() for phase in call])
    cores = np.asarray(phases["core"])
    parts = []
    for core in sorted(set(cores[works]) - {ENGINE_CORE}):
        rows = phases.filter(pa.array(works & (cores == core)))
        name = np.asarray(rows["phase"])
        spent = np.asarray(rows["end_us"]) - np.asarray(rows["begin_us"])
        first = np.flatnonzero(name == "execute")
        call = np.searchsorted(first, np.arange(len(name)), side="right") - 1
        costs = {}
        for shown, members in CALLS.items():
            chosen = np.isin(name, members) & (call >= 0)
            total = np.bincount(call[chosen], spent[chosen], minlength=len(first))
            costs[shown] = np.where(np.bincount(call[chosen], minlength=len(first)) > 0, total, np.nan)
        shape = {
            key: np.asarray(rows[key])[first] for key in ("kind", "requests", "prompt_tokens", "prefills")
        }
        tokens = shape["prompt_tokens"] + shape["requests"] - shape["prefills"]
        kind = shape["kind"].astype(np.str_)
        size = np.where(kind == "full", shape["requests"], tokens)
        parts.append(_steps(kind, size, costs).chosen(kind != "idle"))
    return Steps.concatenate(parts) if parts else None


def _steps(kind: npt.NDArray[np.str_], size: npt.NDArray[np.int64], known: dict[str, Array]) -> Steps:
    unknown = np.full(len(kind), np.nan)
    return Steps(kind, size, {name: known.get(name, unknown).astype(np.float64) for name in COSTS})
