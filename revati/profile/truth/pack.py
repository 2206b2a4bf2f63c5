"""Small copies of measured runs for a repository: without logs, the bulky tables of one repeat only."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.compact import without_token_times, write_compact

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
)


def pack(folders: Sequence[Path], out: Path) -> list[str]:
    """Copy every measured run of some folders; return their names.

    The first repeat of a case that has a step log keeps it, and its token times; the others keep a row a
    request with its latencies.
    """
    names, complete = [], set[str]()
    runs = sorted((path.parent for folder in folders for path in folder.glob("*/run.json")), key=_order)
    for run in runs:
        case = re.sub(r"_rep\d+$", "", run.name)
        description = json.loads((run / "run.json").read_text())
        description.pop("measured", None)  # the tables say it
        requests = pq.read_table(run / "requests.parquet")
        log = run / "steps.parquet"
        if case not in complete and log.is_file():
            complete.add(case)
            steps = pq.read_table(log)
            columns = [name for name in STEP_COLUMNS if name in steps.column_names]
            write_compact(steps.select(columns), out / run.name / "steps.parquet")
            if len(ranks := sorted(run.glob("logs/worker_*.parquet"))) > 1:
                write_compact(workers(ranks), out / run.name / "workers.parquet")
        else:
            requests = without_token_times(requests)
        write_compact(requests, out / run.name / "requests.parquet")
        (out / run.name / "run.json").write_text(json.dumps(description, indent=1) + "\n")
        names.append(run.name)
    return names


def workers(logs: Sequence[Path]) -> pa.Table:
    """The calls of all ranks' workers in one table, µs of host time each."""
    parts = []
    for log in logs:
        calls = pq.read_table(log)
        times = {name: calls[name].to_numpy() for name in calls.column_names if name.endswith("_s")}
        columns: dict[str, Any] = {
            "rank": np.full(calls.num_rows, int(log.stem.rpartition("_")[2])),
            **{
                f"{phase}_us": (1e6 * (times[f"{phase}_end_s"] - times[f"{phase}_begin_s"])).astype(
                    np.float32
                )
                for phase in ("execute", "sample")
            },
            **{name: calls[name] for name in ("scheduled_tokens", "scheduled_requests", "most_tokens")},
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _order(run: Path) -> tuple[str, int]:
    repeat = re.search(r"_rep(\d+)$", run.name)
    return (run.name[: repeat.start()], int(repeat[1])) if repeat else (run.name, 1)
