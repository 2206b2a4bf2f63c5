"""Kernels of recorded SGLang scenes as rows of the kernel database.

    python -m revati.profile.sglang_kernels --scenes DIR/scenes_tp1 --run DIR/scenes_tp1 --tp 1 --out FILE

Only kernels that a launch describes fully: GEMMs, attention and collectives are measured on their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati.profile.parts import Row, summary
from revati.profile.shapes import rank_shape
from revati.timing import db
from revati.timing.families import family
from revati.timing.launches import ARGMAX, row_width
from revati.timing.schema import rows_to_table

_MEASURED_ALONE = ("gemm", "attention", "combine", "collective")


def rows(scenes: Path, run: dict[str, Any], tp: int) -> list[Row]:
    """One row a launch: its median duration over all scenes."""
    shape = rank_shape(run["model"], tp)
    durations: dict[tuple[Any, ...], list[float]] = {}
    for event in pq.read_table(scenes / "activities.parquet").to_pylist():
        if event["kind"] != "kernel" or family(event["name"]) in _MEASURED_ALONE:
            continue
        grid = event["grid_x"], event["grid_y"], event["grid_z"]
        threads = event["block_x"] * event["block_y"] * event["block_z"]
        key = event["name"], grid, threads, event["shared_bytes"]
        durations.setdefault(key, []).append(event["dur_us"])
    environment = run["environment"]
    provenance = {
        "method": "cupti",
        "measured_at": run["recorded_at"],
        "driver": environment["gpus"][0].split(",")[1].strip(),
        "libraries": f"torch={environment['torch']} sglang={run['engine_version']}",
    }
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
    return result


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
