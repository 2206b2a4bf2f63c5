"""Small copies of measured runs for a repository: without logs, the bulky tables of one repeat only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.compact import without_token_times, write_compact
from revati.engines.sglang.step_log import PIPELINE_TIME_COLUMNS, TIME_COLUMNS
from revati.profile.worker_calls import between_calls

STEP_COLUMNS = (
    "schedule_begin_s",
    "schedule_end_s",
    "execute_begin_s",
    "execute_end_s",
    "sample_end_s",
    "update_begin_s",
    "update_end_s",
    "step_end_s",
    "scheduled_tokens",
    "scheduled_requests",
    "prefill_requests",
    "graph",
    "execute_faults",
)
WORKER_COUNTS = ("scheduled_tokens", "scheduled_requests", "most_tokens", "execute_faults")
# What tells of a turn of SGLang's event loop, beside its times.
TURN_COUNTS = (
    "step",
    "received",
    "requests",
    "tokens",
    "prefill_requests",
    "prefill_tokens",
    "graph",
    "processed_requests",
    "launched_step",
    "gpu_was_done",
    "send_wait_us",
)
TURN_MODES = ("mode", "processed_mode")


def pack(folders: Sequence[Path], out: Path, every_log: bool = False) -> list[str]:
    """Copy every measured run of some folders; return their names.

    Of a case's repeats, the first that an engine process served and that has a step log keeps it, and its
    token times; the others keep a row a request with its latencies.

    Args:
        every_log: all repeats keep their step logs: the host was not the same in all of them.
    """
    names, complete = [], set[tuple[str, float | None]]()
    runs = sorted((path.parent for folder in folders for path in folder.glob("*/run.json")), key=_order)
    for run in runs:
        case = re.sub(r"_rep\d+$", "", run.name)
        description = json.loads((run / "run.json").read_text())
        description.pop("measured", None)  # the tables say it
        requests = pq.read_table(run / "requests.parquet")
        served_by = case, description.get("engine_start_s")
        first = served_by not in complete
        steps = step_log(run) if first or every_log else None
        if steps is not None:
            complete.add(served_by)
            write_compact(steps, out / run.name / "steps.parquet")
            if len(ranks := sorted(run.glob("logs/worker_*.parquet"))) > 1:
                of_core = in_workers_time(steps, description)
                write_compact(workers(ranks, of_core), out / run.name / "workers.parquet")
        if steps is None or not first:
            requests = without_token_times(requests)
        write_compact(requests, out / run.name / "requests.parquet")
        (out / run.name / "run.json").write_text(json.dumps(description, indent=1) + "\n")
        names.append(run.name)
    return names


def step_log(run: Path) -> pa.Table | None:
    """The step log of a run, of whichever engine it is; None if the run has none."""
    if ranks := sorted(run.glob("steps_tp*_pp*.parquet")):
        return turns(ranks)
    if not (log := run / "steps.parquet").is_file():
        return None
    steps = pq.read_table(log)
    return steps.select([name for name in STEP_COLUMNS if name in steps.column_names])


def turns(logs: Sequence[Path]) -> pa.Table:
    """The turns of all of SGLang's schedulers in one table, times in whole µs from the run's start."""
    parts = []
    for log in logs:
        steps = pq.read_table(log)
        rank, stage = (int(number) for number in re.findall(r"\d+", log.stem))
        columns: dict[str, Any] = {
            "rank": np.full(steps.num_rows, rank, np.int32),
            "stage": np.full(steps.num_rows, stage, np.int32),
            **{name: steps[name] for name in (*TURN_COUNTS, *TURN_MODES)},
        }
        for name in (*TIME_COLUMNS, *PIPELINE_TIME_COLUMNS):
            if name in steps.column_names:
                times_us = 1e6 * steps[name].to_numpy()
                absent = np.isnan(times_us)
                whole = np.where(absent, 0, np.rint(times_us)).astype(np.int64)
                columns[f"{name.removesuffix('_s')}_us"] = pa.array(whole, mask=absent)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def in_workers_time(steps: pa.Table, description: Mapping[str, Any]) -> dict[str, Any]:
    """A step log's numbers, times by the clock of the machine, as workers have them."""
    start_s = description["machine"]["start_monotonic_s"]
    numbers = {name: steps[name].to_numpy() for name in steps.column_names if name != "graph"}
    return {name: of + start_s if name.endswith("_s") else of for name, of in numbers.items()}


def workers(logs: Sequence[Path], steps: Mapping[str, Any]) -> pa.Table:
    """The calls of all ranks' workers in one table, µs of host time each, and between them.

    Args:
        steps: the engine core's (see `in_workers_time`).
    """
    parts = []
    for log in logs:
        table = pq.read_table(log)
        calls = {name: table[name].to_numpy() for name in table.column_names}
        to_sample_us, to_execute_us = between_calls(calls, steps)
        times_us = {
            "execute_us": 1e6 * (calls["execute_end_s"] - calls["execute_begin_s"]),
            "sample_us": 1e6 * (calls["sample_end_s"] - calls["sample_begin_s"]),
            "to_sample_us": to_sample_us,
            "to_execute_us": to_execute_us,
        }
        columns: dict[str, Any] = {
            "rank": np.full(table.num_rows, int(log.stem.rpartition("_")[2])),
            **{name: us.astype(np.float32) for name, us in times_us.items()},
            **{name: table[name] for name in WORKER_COUNTS},
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _order(run: Path) -> tuple[str, int]:
    repeat = re.search(r"_rep(\d+)$", run.name)
    return (run.name[: repeat.start()], int(repeat[1])) if repeat else (run.name, 1)
