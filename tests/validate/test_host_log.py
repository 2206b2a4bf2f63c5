"""What a step log says of a host."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.validate import host_log

from .conftest import AddRun
from .step_logs import write_log

LAUNCHING_S, WAITING_S = 0.02, 0.1
CALLS_US = {"execute": 900.0, "sample": 500.0, "to_sample": 40.0, "to_execute": 70.0}


def test_steps_behind_a_long_prefill_say_nothing_of_launching(add_run: AddRun) -> None:
    """Four at once, as in a burst, the last one short; then one by one among decodes, a short one behind."""
    folder = add_run("saturated")
    write_log(folder, slowdown=1.0)
    log = pq.read_table(folder / "steps.parquet")
    tokens, prefills = (log[name].to_numpy().copy() for name in ("scheduled_tokens", "prefill_requests"))
    execute_s = (log["execute_end_s"].to_numpy() - log["execute_begin_s"].to_numpy()).copy()
    alone, waiting = [0, 20, 40, 60, 61], [1, 2, 3]
    tokens[[0, 1, 2, 40]], tokens[[3, 20, 60, 61]] = 8192, 700
    prefills[alone + waiting] = 1
    execute_s[alone], execute_s[waiting] = LAUNCHING_S, WAITING_S
    execute_s[[10, 41]] = LAUNCHING_S, WAITING_S  # decodes, the second one behind a long prefill
    columns = {"scheduled_tokens": tokens, "prefill_requests": prefills}
    columns["execute_end_s"] = log["execute_begin_s"].to_numpy() + execute_s
    for name, values in columns.items():
        log = log.set_column(log.column_names.index(name), name, pa.array(values))
    pq.write_table(log, folder / "steps.parquet")
    costs = host_log.read(folder, json.loads((folder / "run.json").read_text()))
    (execute,) = [one for one in costs if (one.phases, one.kind) == (("execute",), "compiled")]
    assert np.allclose(execute.cost_us, 1e6 * LAUNCHING_S)
    assert len(execute.cost_us) == len(alone)
    (execute,) = [one for one in costs if (one.phases, one.kind) == (("execute",), "full")]
    assert np.isclose(max(execute.cost_us), 1e6 * LAUNCHING_S)
    (schedule,) = [one for one in costs if (one.phases, one.kind) == (("schedule",), "compiled")]
    assert len(schedule.cost_us) == len(alone + waiting)


def test_workers_logs_tell_what_their_processes_need_between_calls(add_run: AddRun) -> None:
    """Two ranks of which the first hands over outputs; every third step has a prompt."""
    folder = add_run("ranks", num_gpus=2, tensor_parallel_size=2)
    write_log(folder, slowdown=1.0)
    log = pq.read_table(folder / "steps.parquet")
    prompts = np.arange(log.num_rows) % 3 == 0
    prefills = pa.array(prompts.astype(np.int64))
    log = log.set_column(log.column_names.index("prefill_requests"), "prefill_requests", prefills)
    pq.write_table(log, folder / "steps.parquet")
    shape = {name: log[name] for name in ("scheduled_tokens", "scheduled_requests")}
    ranks = [
        pa.table(
            {"rank": np.full(log.num_rows, rank), **shape}
            | {f"{name}_us": np.full(log.num_rows, us + 10 * rank) for name, us in CALLS_US.items()}
        )
        for rank in (0, 1)
    ]
    pq.write_table(pa.concat_tables(ranks), folder / "workers.parquet")
    found: dict[tuple[str, ...], list[float]] = {}
    for costs in host_log.read(folder, json.loads((folder / "run.json").read_text())):
        found.setdefault(costs.phases, []).extend(costs.cost_us)
    assert set(found["execute",]) == {910.0}  # the slowest rank's
    assert set(found["executed",]) == {40.0}
    assert set(found["sampled",]) == set(found["sampled", "worker_unpack"]) == {70.0}
    assert len(found["sampled", "worker_unpack"]) == np.sum(prompts)
    assert len(found["sampled",]) + np.sum(prompts) == len(found["executed",])
