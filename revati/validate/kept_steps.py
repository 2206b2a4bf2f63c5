"""An emulated run's steps as they are kept beside its requests, in whole µs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.compact import write_compact
from revati.validate.steps import COSTS, ENGINE_CORE, Array, Steps, emulated_steps
from revati.validate.workers import emulated_calls

FILE = "steps.parquet"
WORKERS = "workers"


def keep_steps(timeline: Path, path: Path) -> None:
    """Write the steps of a phases.parquet: rows of the engine core, then of workers that are processes."""
    phases = pq.read_table(timeline)
    found = {ENGINE_CORE: emulated_steps(phases)}
    if (calls := emulated_calls(phases)) is not None:
        found[WORKERS] = calls
    write_compact(pa.concat_tables(_table(process, steps) for process, steps in found.items()), path)


def read_steps(path: Path) -> dict[str, Steps]:
    """What `keep_steps` wrote, by process."""
    table = pq.read_table(path)
    process = np.asarray(table["process"])
    every = Steps(
        np.asarray(table["kind"]).astype(np.str_),
        np.asarray(table["size"]),
        {name: np.asarray(table[f"{name}_us"].cast(pa.float64()).fill_null(np.nan)) for name in COSTS},
    )
    return {str(name): every.chosen(process == name) for name in dict.fromkeys(process)}


def _table(process: str, steps: Steps) -> pa.Table:
    costs = {f"{name}_us": _whole(steps.cost_us[name]) for name in COSTS}
    return pa.table({"process": [process] * len(steps.kind), "kind": steps.kind, "size": steps.size, **costs})


def _whole(cost_us: Array) -> pa.Array:
    unknown = np.isnan(cost_us)
    return pa.array(np.rint(np.where(unknown, 0.0, cost_us)).astype(np.int32), mask=unknown)
