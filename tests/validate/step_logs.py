"""Step logs of made-up machines."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from revati.virtual_time.host_table import HostTable

STEP_S = 0.01
GRAPH_SIZES = (1, 2, 4, 8, 16)
TABLE = HostTable.load("h200_xeon", slowdown=1.0)


def write_log(
    folder: Path,
    slowdown: float,
    count: int = 240,
    execute_slowdown: float | None = None,
    kind: str = "full",
    stall: float = 1.0,
    stall_every: int = 10,
    first_launch: float = 1.0,
) -> None:
    """Decode steps of 1 to 16 requests, each phase `slowdown` times as long as the table says.

    Args:
        kind: how the model runs by the run's description: full, or eager.
        stall: how many times as long execute takes in one of ``stall_every`` steps.
        first_launch: how many times as long sample takes in the first step with each of `GRAPH_SIZES`.
    """
    rows = []
    for step in range(count):
        requests = 1 + step % 16
        updated = 1 + (step - 1) % 16  # asynchronous scheduling: the outputs of the step before
        schedule, execute, sample = (
            1e-6 * slowdown * TABLE.phase_us(phase, kind, requests, num_layers=32)
            for phase in ("schedule", "execute", "sample")
        )
        execute *= (execute_slowdown or slowdown) / slowdown
        if step % stall_every == stall_every - 1:
            execute *= stall
        if step == 0 or step in GRAPH_SIZES[:-1]:  # one request more than fit the graph before
            sample *= first_launch
        begin = step * STEP_S
        update_begin = begin + 0.8 * STEP_S if step else float("nan")
        rows.append(
            {
                "schedule_begin_s": begin,
                "schedule_end_s": begin + schedule,
                "execute_begin_s": begin + schedule,
                "execute_end_s": begin + schedule + execute,
                "sample_end_s": begin + schedule + execute + sample,
                "update_begin_s": update_begin,
                "update_end_s": update_begin + 1e-6 * slowdown * TABLE.phase_us("update", kind, updated),
                "step_end_s": begin + 0.9 * STEP_S,
                "scheduled_tokens": requests,
                "scheduled_requests": requests,
                "prefill_requests": 0,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "steps.parquet")
