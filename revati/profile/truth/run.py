"""One engine serves its workloads; every run is written as it ends.

Tables are written as validation reads them: latencies from the scheduled arrival, times in seconds from
the run's start, token times in µs from the request's arrival.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revati.compact import write_compact
from revati.deployment.prompts import Turns
from revati.engines.vllm.step_log import TIME_COLUMNS
from revati.profile.host_client import Client, VllmClient, measured_metrics, now, requests_table
from revati.profile.host_engine import start_engine
from revati.profile.host_load import EngineCase, Request, requests_of, write_model
from revati.profile.host_probe import python_probes
from revati.profile.machine import describe, gpu_query
from revati.profile.truth.cases import EngineRuns, Load
from revati.workload import Workload

GPU_STATE = "index,clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
DRAIN_S = 12.0  # how long after its last arrival a workload may run
BEAT_S = 0.02
STALL_S = 0.3  # a pause of the client's event loop that tails should not be judged by


async def measure(
    engine_runs: EngineRuns, loads: Sequence[Load], gpu: str, out: Path, models: Path, deadline: float
) -> int:
    """Start an engine and measure its workloads in rounds until the deadline.

    Args:
        out: gets a folder a run.
        deadline: CLOCK_MONOTONIC seconds by which the last run has ended.

    Returns the number of runs measured.
    """
    case = EngineCase(engine_runs.name, engine_runs.model)
    engine, config, start_s = start_engine(
        case.name, write_model(case, models), dict(engine_runs.engine_args)
    )
    facts = describe(config, start_s)
    client = VllmClient(engine, int(config.model_config.get_vocab_size()))
    await warm_up(client)
    count = 0
    for repeat in range(engine_runs.repeats):
        for load in loads:
            workload = load.requests()
            if now() + float(workload.arrival_s[-1]) + DRAIN_S > deadline:
                print(f"[{case.name}] {load.name}: no time left", flush=True)
                continue
            folder = out / engine_runs.run_name(load.name, repeat)
            await measure_run(client, workload, folder)
            write_description(engine_runs, load, gpu, facts, folder)
            print(f"[{case.name}] {folder.name}: {len(workload)} requests", flush=True)
            count += 1
    engine.shutdown()
    return count


async def warm_up(client: Client) -> None:
    """Let first prefills and decodes allocate and compile what later ones reuse."""
    await client.segment("warmup", [Request(0.05 * i, 30 * i + 8, 8) for i in range(24)])
    await client.segment("warmup", [Request(0.0, 16 + 9 * i, 4 + i % 40) for i in range(160)])


async def measure_run(client: VllmClient, workload: Workload, folder: Path) -> None:
    """Serve one workload on an idle engine and write its tables, logs and the machine's state."""
    from revati.engines.vllm import frontend_log

    engine = client.engine
    core = engine.engine_core
    await asyncio.sleep(0.2)  # let the engine free the blocks of its last requests
    await engine.reset_prefix_cache()
    await core.call_utility_async("clear_step_log")
    await engine.collective_rpc("write_worker_log", args=(str(folder / "logs"),))  # forgets earlier rows
    frontend_log.clear()
    before = machine_state()
    requests = requests_of(workload, client.vocabulary)
    gc.collect()
    gc.freeze()
    heart = asyncio.create_task(longest_pause())
    outcomes = await client.segment(folder.name, requests, Turns(workload))
    heart.cancel()
    pause_s = await heart
    after = machine_state()
    await core.call_utility_async("write_step_log", str(folder / "logs"))
    await engine.collective_rpc("write_worker_log", args=(str(folder / "logs"),))
    frontend_log.write(str(folder / "logs"))
    start_s = outcomes[0].arrival_s - requests[0].arrival_s
    write_compact(requests_table(outcomes, start_s, workload), folder / "requests.parquet")
    write_compact(
        from_start(pq.read_table(folder / "logs" / "steps.parquet"), start_s), folder / "steps.parquet"
    )
    (folder / "logs" / "steps.parquet").unlink()
    for path in (folder / "logs").glob("*.parquet"):
        write_compact(pq.read_table(path), path)
    state = {
        "start_monotonic_s": start_s,
        "client_longest_pause_s": pause_s,
        "before": before,
        "after": after,
    }
    (folder / "logs" / "machine.json").write_text(json.dumps(state, indent=1))


async def longest_pause() -> float:
    """Watch the event loop until cancelled; return the longest time that it answered nothing."""
    longest, last = 0.0, now()
    try:
        while True:
            await asyncio.sleep(BEAT_S)
            at = now()
            longest, last = max(longest, at - last - BEAT_S), at
    except asyncio.CancelledError:
        return max(longest, now() - last - BEAT_S)


def machine_state() -> dict[str, Any]:
    """How fast and how busy this machine is at the moment, while the engine idles."""
    ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return {
        "load": os.getloadavg(),
        "cpu_ticks": dict(zip(names, map(int, ticks), strict=False)),
        "gpus": {"fields": GPU_STATE, "rows": gpu_query(GPU_STATE)},
        "python_us": python_probes(),
    }


def from_start(steps: pa.Table, start_s: float) -> pa.Table:
    """Return the step log with its times counted from the run's start, without the steps before it."""
    for name in TIME_COLUMNS:
        times = np.asarray(steps[name]) - start_s
        steps = steps.set_column(steps.column_names.index(name), name, pa.array(times))
    return steps.filter(pa.array(np.asarray(steps["step_end_s"]) > 0))


def write_description(
    engine_runs: EngineRuns, load: Load, gpu: str, facts: dict[str, Any], folder: Path
) -> None:
    """Write run.json beside the tables and keep the machine's facts in it."""
    logs = folder / "logs"
    machine = json.loads((logs / "machine.json").read_text())
    (logs / "machine.json").unlink()
    resolved = facts["resolved"]
    requests = pq.read_table(folder / "requests.parquet")
    description = {
        "case": folder.name,
        "engine": facts["engine"],
        "engine_version": facts["engine_version"],
        "interface": "AsyncLLM, engine core in a process of its own",
        "model": engine_runs.model,
        "gpu": gpu,
        "num_gpus": len(engine_runs.gpus),
        "tensor_parallel_size": engine_runs.parallel("tensor"),
        "pipeline_parallel_size": engine_runs.parallel("pipeline"),
        "engine_args": dict(engine_runs.engine_args),
        "resolved": resolved | {"kv_cache_size_tokens": resolved["num_gpu_blocks"] * resolved["block_size"]},
        "environment": facts["environment"]
        | {name: facts[name] for name in ("torch", "cuda", "python", "cpu", "cpus", "recorded_at")}
        | {"gpus": facts["gpu"]},
        "workload": load.description() | {"num_requests": requests.num_rows},
        "frontend_stall": machine["client_longest_pause_s"] > STALL_S,
        "engine_start_s": facts["engine_start_s"],
        "machine": machine,
        "measured": measured_metrics(requests, len(engine_runs.gpus)),
    }
    (folder / "run.json").write_text(json.dumps(description, indent=1, default=str))
    if not any(logs.iterdir()):
        shutil.rmtree(logs)
