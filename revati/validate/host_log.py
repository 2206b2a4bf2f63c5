"""What each host phase of a measured run of vLLM cost, from its step log and its workers' calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from revati.profile.host_logs import behind_long_prefills
from revati.validate.phase_costs import Array, Counts, PhaseCosts
from revati.validate.steps import graph_settings, step_kinds


def read(folder: Path, description: Mapping[str, Any]) -> list[PhaseCosts]:
    """All phases that a run's logs tell: steps.parquet, and workers.parquet of workers in own processes.

    Args:
        description: the run's run.json.
    """
    log = pq.read_table(folder / "steps.parquet")
    columns = {name: np.asarray(log[name]) for name in log.column_names if name != "graph"}
    remote = (folder / "workers.parquet").is_file()
    if not remote and description["num_gpus"] > 1:
        return []  # a log of dispatching alone
    scheduled = columns["scheduled_tokens"] > 0
    requests, prefills = columns["scheduled_requests"], columns["prefill_requests"]
    tokens = columns["scheduled_tokens"]
    largest_graph, eager = graph_settings(description)
    kind = step_kinds(log, eager=eager, largest_graph=largest_graph)
    sizes = description["resolved"].get("cudagraph_capture_sizes") or []
    launched = scheduled & ~behind_long_prefills(tokens) & ~_first_launches(kind, requests, sizes)
    handed = scheduled if remote else launched
    shape = requests, tokens - (requests - prefills), prefills
    us = {name: 1e6 * times for name, times in columns.items() if name.endswith("_s")}
    core: dict[tuple[str, ...], tuple[Array, npt.NDArray[np.bool_]]] = {
        ("schedule",): (us["schedule_end_s"] - us["schedule_begin_s"], scheduled),
        ("dispatch" if remote else "execute",): (us["execute_end_s"] - us["execute_begin_s"], handed),
        ("dispatch_sample" if remote else "sample",): (us["sample_end_s"] - us["execute_end_s"], handed),
    }
    found = [one for phases, (cost, of) in core.items() for one in _by_kind(phases, kind, cost, of, shape)]
    update, updated = _updates(us["update_end_s"] - us["update_begin_s"], scheduled)
    of_updated = tuple(counts[updated] for counts in shape)
    found += _by_kind(("update",), kind[updated], update, np.ones(len(updated), np.bool_), of_updated)
    if remote:
        steps = np.flatnonzero(scheduled)
        calls = _workers(folder, description, prefills[steps] > 0)
        of_steps = tuple(counts[steps] for counts in shape)
        for phases, cost in calls.items():
            found += _by_kind(phases, kind[steps], cost, launched[steps], of_steps)
    return found


def _first_launches(
    kind: npt.NDArray[np.str_], requests: Counts, sizes: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Decode steps that launch a graph for the first time in a log, and those after them.

    Such a launch takes longer, and what follows waits for the GPU, if it is the first one in the engine, too.
    """
    steps = np.flatnonzero(kind == "full")
    graph = np.searchsorted(np.sort(sizes), requests[steps])
    first = steps[np.unique(graph, return_index=True)[1]]
    found = np.zeros(len(kind) + 1, np.bool_)
    found[first] = found[first + 1] = True
    return found[:-1]


def _updates(cost_us: Array, scheduled: npt.NDArray[np.bool_]) -> tuple[Array, Counts]:
    """Costs of the updates, and the step whose outputs each of them handles: steps are updated in turn."""
    updates = np.flatnonzero(np.isfinite(cost_us))
    steps = np.flatnonzero(scheduled)
    count = min(len(updates), len(steps))
    return cost_us[updates[:count]], steps[:count]


def _workers(
    folder: Path, description: Mapping[str, Any], prompts: npt.NDArray[np.bool_]
) -> dict[tuple[str, ...], Array]:
    """Costs of the workers' phases, by step; of tensor-parallel ranks the slowest one counts.

    Of pipeline stages the one with the shortest execute: stages wait until the next one takes what they send,
    and for what the one before sends, so one of them did not wait. It sends, or takes as long to receive.
    Between its calls the rank counts that hands over outputs, where the log has it.

    Args:
        prompts: which steps compute some.
    """
    steps = len(prompts)
    calls = pq.read_table(folder / "workers.parquet")
    rank, tokens = np.asarray(calls["rank"]), np.asarray(calls["scheduled_tokens"])
    ranks = int(rank.max()) + 1
    tensor_parallel = int(description["tensor_parallel_size"])

    def slowest(phase: str, first: int, count: int = tensor_parallel) -> Array:
        members = [(rank == one) & (tokens > 0) for one in range(first, first + count)]
        if any(int(member.sum()) != steps for member in members):
            return np.full(steps, np.nan)  # a log that began late
        cost = np.asarray(calls[f"{phase}_us"], np.float64)
        slow: Array = np.max([cost[member] for member in members], axis=0)
        return slow

    stages = range(0, ranks, tensor_parallel)
    execute = np.min([slowest("execute", first) for first in stages], axis=0)
    last = ranks - tensor_parallel
    found: dict[tuple[str, ...], Array] = {("sample",): slowest("sample", last)}
    if ranks == tensor_parallel:
        found["execute",] = execute
    else:
        found |= {("execute", "send"): execute, ("receive",): slowest("sample", 0)}
    if "to_sample_us" in calls.column_names:
        to_execute = slowest("to_execute", last, 1)
        found |= {
            ("executed",): slowest("to_sample", last, 1),
            ("sampled",): np.where(prompts, np.nan, to_execute),
            ("sampled", "worker_unpack"): np.where(prompts, to_execute, np.nan),
        }
    return found


def _by_kind(
    phases: tuple[str, ...],
    kind: npt.NDArray[np.str_],
    cost_us: Array,
    chosen: npt.NDArray[np.bool_],
    shape: tuple[Counts, ...],
) -> Iterator[PhaseCosts]:
    for one in np.unique(kind):
        rows = chosen & (kind == one) & np.isfinite(cost_us)
        if rows.any():
            yield PhaseCosts(phases, str(one), cost_us[rows], *(counts[rows] for counts in shape))
