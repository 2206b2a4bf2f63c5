"""Fit a host table to the logs of a calibration: costs of each phase of an engine step on the target.

    python -m revati.profile.host_fit --runs DIR [DIR ...] --out conf/host/h200_xeon.yaml

A DIR holds one engine's logs as `host_calibration` writes them. A phase's cost is modelled as

    latency + slowdown · (base + requests · per_request + tokens · per_token + prefills · per_prefill
                          + layers · per_layer)

with coefficients that are never negative, fitted to the least absolute relative deviation. A shared host
moves between plateaus for seconds at a time, so every half second has a slowdown of its own, which is
taken out before the fit (1: the quietest engine) and reported as levels of the table. So are the chunks of
Python's frame stack that an engine's launches begin, told by launches at other depths of the stack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from revati.profile.host_chunks import chunk_us
from revati.profile.host_in_common import of_decodes, shares
from revati.profile.host_logs import Array, Run, joined_requests, kinds, load_run, phase_costs, waits_us
from revati.profile.host_model import fit
from revati.profile.host_samples import collect, message_samples, set_slowdowns
from revati.profile.host_workers import pipeline_costs, tensor_parallel_factors, worker_messages
from revati.virtual_time.spread import QUANTILES

LEVELS = dict(zip(("quiet", "typical", "busy"), QUANTILES, strict=True))  # of the slowdown, by half second
_RESOLUTION_US = 0.1  # of latencies in the table


def lateness(late_us: Sequence[float]) -> dict[str, Any]:
    """The phase `arrival`: how late, or early (negative), an open-loop client's timers are."""
    quantiles_us = np.quantile(late_us, QUANTILES)
    # A spread is relative to its latency, which therefore cannot be 0.
    latency_us = round(float(quantiles_us[1]), 1) or _RESOLUTION_US
    return {
        "latency_us": latency_us,
        "samples": len(late_us),
        "spread": [round(float(quantile_us / latency_us), 3) for quantile_us in quantiles_us],
    }


def together(run: Run) -> Array:
    """How the phases of a run's decode steps correlate, and the steps with each other."""
    scheduled = run.steps["scheduled_tokens"] > 0
    decode = (kinds(run) == ("eager" if run.eager else "full")) & (run.steps["prefill_requests"] == 0)
    costs = phase_costs(run)
    costs_us = (costs[phase] for phase in ("schedule", "execute", "sample"))
    return of_decodes(costs_us, run.steps["scheduled_requests"], scheduled, decode)


def make_table(
    runs: list[Run], ranked: list[Run], pipelines: list[Path], reference: list[Run], name: str
) -> dict[str, Any]:
    """Build the table that `HostTable` reads, from runs of one GPU, of tensor ranks and of two stages."""
    set_slowdowns(runs, reference)
    each_chunk_us = chunk_us(runs)
    phases = fit(collect(runs, each_chunk_us)) | fit(message_samples(runs))
    phases |= worker_messages(ranked) | pipeline_costs(pipelines)
    wait, waits = waits_us(runs)
    for entry in phases["wake"].values():
        entry["latency_us"] = round(wait, 1)
        del entry["spread"]  # it would be that of the small rest after the wait
    slowdowns = np.array([s for run in runs for s in run.slowdowns.values()])
    late = [
        (row["submitted_s"] - row["arrival_s"]) * 1e6
        for run in runs
        for row in joined_requests(run)
        if row["alone"]
    ]
    phases["arrival"] = {"any": lateness(late)}
    return {
        "name": name,
        "slowdowns": {level: round(float(np.quantile(slowdowns, q)), 3) for level, q in LEVELS.items()},
        "level": "typical",
        "in_common": shares(map(together, runs)),
        "tensor_parallel": tensor_parallel_factors(ranked, phases, each_chunk_us),
        **({"frame_chunks": {"us": round(each_chunk_us, 3)}} if each_chunk_us else {}),
        "gpu_wait_us": {"median": round(wait, 1), "samples": waits},
        "provenance": [
            {
                "run": run.name,
                "recorded_at": run.description["recorded_at"],
                "cpu": run.description["cpu"],
                "cpus": run.description["cpus"],
                "gpu": run.description["gpu"],
                "engine": f"{run.description['engine']} {run.description['engine_version']}",
                "torch": run.description["torch"],
                "python": run.description["python"],
                "layers": run.layers,
                "steps": len(run.graph),
                "tensor_parallel_size": run.tensor_parallel_size,
                "slowdown": [
                    round(float(q), 3) for q in np.quantile(list(run.slowdowns.values()) or [1.0], QUANTILES)
                ],
            }
            for run in [*runs, *ranked]
        ],
        "phases": phases,
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of calibrated engines")
    parser.add_argument(
        "--reference", nargs="+", help="names of the runs whose slowdown is 1 (default: the first)"
    )
    parser.add_argument(
        "--pipelines", type=Path, nargs="*", default=[], help="folders with worker logs of two-stage engines"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the table to write, e.g. conf/host/h200_xeon.yaml"
    )
    arguments = parser.parse_args(argv)
    every = [load_run(folder) for folder in arguments.runs]
    runs = [run for run in every if run.tensor_parallel_size == 1]
    ranked = [run for run in every if run.tensor_parallel_size > 1]
    wanted = arguments.reference or [runs[0].name]
    reference = [run for run in runs if run.name in wanted]
    if not reference:
        parser.error(f"--reference: none of {', '.join(wanted)} among {', '.join(run.name for run in runs)}")
    table = make_table(runs, ranked, arguments.pipelines, reference, arguments.out.stem)
    arguments.out.write_text(
        "# Made by python -m revati.profile.host_fit; see revati/virtual_time/host_table.py.\n"
        + yaml.safe_dump(table, sort_keys=False, width=110, default_flow_style=None)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
