"""Kernels of recorded SGLang scenes as rows of the kernel database.

    python -m revati.profile.sglang_kernels --scenes DIR/scenes_tp1 --run DIR/scenes_tp1 --tp 1 --out FILE

Only kernels that a launch describes fully, the all-reduce of SGLang's own, and by how much decodes' attention
takes less than the database says of vLLM's: GEMMs, attention and other collectives are measured on their own.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from revati import paths
from revati.profile.parts import Row, summary
from revati.profile.shapes import rank_shape
from revati.timing import db
from revati.timing.attention import KINDS as ATTENTION
from revati.timing.families import family
from revati.timing.launches import ARGMAX, row_width
from revati.timing.schema import SGLANG_SHORTER, rows_to_table
from revati.timing.timer import KernelTimer

_MEASURED_ALONE = ("gemm", "attention", "combine", "collective")
_ALL_REDUCE = re.compile(r"sglang::cross_device_reduce_([12]stage)")
LEAST_STEPS = 5
# Attention of more decodes lowers the clock while it is traced, which is the power model's matter.
MOST_AT_FULL_CLOCK = 32
_NORM = "RMSNorm"  # has a block for each token of a step, padded as its graph is


def rows(scenes: Path, run: dict[str, Any], tp: int) -> list[Row]:
    """One row a launch: its median duration over all scenes."""
    shape = rank_shape(run["model"], tp)
    durations: dict[tuple[Any, ...], list[float]] = {}
    events = pq.read_table(scenes / "activities.parquet").to_pylist()
    for event in events:
        if event["kind"] != "kernel" or family(event["name"]) in _MEASURED_ALONE:
            continue
        grid = event["grid_x"], event["grid_y"], event["grid_z"]
        threads = event["block_x"] * event["block_y"] * event["block_z"]
        key = event["name"], grid, threads, event["shared_bytes"]
        durations.setdefault(key, []).append(event["dur_us"])
    provenance = _provenance(run)
    result: list[Row] = []
    for (name, grid, threads, shared_bytes), found in durations.items():
        kind = family(name)
        result.append(
            {
                "kind": kind,
                "kernel": name,
                "variant": "sglang",
                "dtype": "bfloat16",
                "grid_x": grid[0],
                "grid_y": grid[1],
                "grid_z": grid[2],
                "block_x": threads,
                "shared_bytes": shared_bytes,
                "width": shape.vocab * tp if ARGMAX in name else row_width(name, kind, shape),
                "num_q_heads": shape.num_q_heads,
                "num_kv_heads": shape.num_kv_heads,
                "head_dim": shape.head_dim,
                **provenance,
                **summary(found),
            }
        )
    if tp > 1:
        for (stage, nbytes), found in all_reduces(events, 2 * shape.hidden).items():
            reduced = {"kind": "collective", "kernel": "all_reduce", "variant": f"sglang_custom_{stage}"}
            result.append(
                {
                    **reduced,
                    "dtype": "bfloat16",
                    "nbytes": nbytes,
                    "ranks": tp,
                    **provenance,
                    **summary(found),
                }
            )
    steps = pq.read_table(scenes / "steps.parquet").to_pylist()
    timer = KernelTimer(paths.kernel_db_dir(), run["gpu"], shape)
    for (part, requests), found in shorter_attention(events, steps, timer).items():
        differs = {"kind": SGLANG_SHORTER, "kernel": part, "variant": "sglang", "num_reqs": requests}
        heads = {"num_q_heads": shape.num_q_heads, "num_kv_heads": shape.num_kv_heads}
        result.append({**differs, **heads, **provenance, **summary(found)})
    return result


def shorter_attention(
    events: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], timer: KernelTimer
) -> dict[tuple[str, int], list[float]]:
    """By how many µs decodes' attention and combine kernels took less than the timer says of vLLM's.

    By kernel and number of requests, of each step the median of its layers; of a few steps between scenes
    nothing, nor of attention that meets the power limit.
    """
    recorded: dict[tuple[str, int, str], list[float]] = {}
    for event in events:
        if event["kind"] == "kernel" and (kind := family(event["name"])) in ATTENTION:
            recorded.setdefault((event["scene"], event["step"], kind), []).append(event["dur_us"])
    shorter: dict[tuple[str, int], list[float]] = {}
    for step in steps:
        if not step["scene"].startswith("decode") or step["mode"] != "DECODE":
            continue
        batch = np.array(step["query_lens"]), np.array(step["context_lens"])
        for kind, expected in zip(ATTENTION, timer.attention(*batch, "eager"), strict=True):
            if kind == "attention" and len(batch[0]) > MOST_AT_FULL_CLOCK:
                continue
            if found := recorded.get((step["scene"], step["step"], kind)):
                of_step_us = expected.duration_us - statistics.median(found)
                shorter.setdefault((kind, len(batch[0])), []).append(of_step_us)
    return {of: found for of, found in shorter.items() if len(found) >= LEAST_STEPS}


def all_reduces(events: Sequence[dict[str, Any]], token_bytes: int) -> dict[tuple[str, int], list[float]]:
    """Durations in µs of SGLang's own all-reduce, by its kind and what one rank puts in.

    A rank's kernel lasts from its own start until all have come: that of the last one tells how long the
    reduction takes, so of each call the shortest among the ranks counts.
    """
    tokens: dict[tuple[str, int], int] = {}  # by scene and step
    calls: dict[tuple[str, int], dict[str, list[tuple[str, float]]]] = {}  # then by rank, in order
    for event in sorted(events, key=lambda event: float(event["ts_us"])):
        scene, _, rank = event["scene"].rpartition("_tp")
        step = scene, event["step"]
        if event["step"] < 0:
            continue
        if _NORM in event["name"]:
            tokens.setdefault(step, event["grid_x"])
        elif found := _ALL_REDUCE.search(event["name"]):
            calls.setdefault(step, {}).setdefault(rank, []).append((found[1], event["dur_us"]))
    durations: dict[tuple[str, int], list[float]] = {}
    for step, by_rank in calls.items():
        for together in zip(*by_rank.values(), strict=True):
            size = together[0][0], tokens[step] * token_bytes
            durations.setdefault(size, []).append(min(duration_us for _, duration_us in together))
    return durations


def _provenance(run: dict[str, Any]) -> Row:
    environment = run["environment"]
    return {
        "method": "cupti",
        "measured_at": run["recorded_at"],
        "driver": environment["gpus"][0].split(",")[1].strip(),
        "libraries": f"torch={environment['torch']} sglang={run['engine_version']}",
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--run", type=Path, nargs="+", required=True, help="folder with the engine's run.json"
    )
    parser.add_argument("--tp", type=int, nargs="+", required=True, help="tensor-parallel ranks of each")
    parser.add_argument("--out", type=Path, required=True, help="kernel_db/gpu=<gpu>/sglang.parquet")
    arguments = parser.parse_args(argv)
    every: list[Row] = []
    for scenes, run, tp in zip(arguments.scenes, arguments.run, arguments.tp, strict=True):
        every += rows(scenes, json.loads((run / "run.json").read_text()), tp)
    db.write(rows_to_table(every), arguments.out)
    print(f"{len(every)} launches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
