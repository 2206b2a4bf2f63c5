"""Compare attention in recorded engine runs with the timing database's answer, and keep the ratio.

    python -m revati.profile.in_engine GPU MODEL=SCENES_DIR ...

Each SCENES_DIR holds activities.parquet and steps.parquet of `revati.profile.host_calibration`; MODEL is a
group of conf/model.  Writes ``kernel_db/gpu=GPU/fitted/attention_in_engine.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from revati.paths import kernel_db_dir
from revati.profile.shapes import rank_shape
from revati.timing.families import ATTENTION_MAIN
from revati.timing.in_engine import FILE
from revati.timing.timer import KernelTimer

BINS_PER_OCTAVE = 1
FEWEST_STEPS = 4


def ratios(gpu: str, model: str, folder: Path) -> list[tuple[float, float]]:
    """(log2 of KV bytes per layer, recorded / predicted duration) of each pure decode step."""
    shape = rank_shape(model, 1)
    timer = KernelTimer(kernel_db_dir(), gpu, shape, in_engine=False)
    recorded: dict[tuple[str, int], list[float]] = {}
    activities = pq.read_table(folder / "activities.parquet", columns=["scene", "step", "name", "dur_us"])
    for row in activities.to_pylist():
        if ATTENTION_MAIN.search(row["name"]):
            recorded.setdefault((row["scene"], row["step"]), []).append(row["dur_us"])
    token_bytes = 2 * shape.num_kv_heads * shape.head_dim * 2
    found = []
    for step in pq.read_table(folder / "steps.parquet").to_pylist():
        durations = recorded.get((step["scene"], step["step"]))
        if not durations or max(step["query_lens"]) != 1:
            continue
        contexts = np.array(step["context_lens"])
        main, _ = timer.attention(np.array(step["query_lens"]), contexts)
        nbytes = token_bytes * float(contexts.sum())
        found.append((float(np.log2(nbytes)), float(np.median(durations)) / main.duration_us))
    return found


def curve(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Median ratio per octave; never below 1 nor falling, since more bytes cannot cost less."""
    octaves: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        octaves.setdefault(int(point[0] * BINS_PER_OCTAVE), []).append(point)
    kept = [octaves[octave] for octave in sorted(octaves) if len(octaves[octave]) >= FEWEST_STEPS]
    at = [float(np.median([x for x, _ in group])) for group in kept]
    factor = np.maximum.accumulate([max(1.0, float(np.median([y for _, y in group]))) for group in kept])
    return at, [float(value) for value in factor]


def main() -> int:
    if len(sys.argv) < 3 or not all("=" in argument for argument in sys.argv[2:]):
        print(__doc__, file=sys.stderr)
        return 2
    gpu, sources = sys.argv[1], [argument.split("=", 1) for argument in sys.argv[2:]]
    points = [point for model, folder in sources for point in ratios(gpu, model, Path(folder))]
    log2_bytes, factor = curve(points)
    path = kernel_db_dir() / f"gpu={gpu}" / "fitted" / FILE
    recorded = [model for model, _ in sources]
    content = {"log2_bytes": log2_bytes, "factor": factor, "steps": len(points), "recorded": recorded}
    path.write_text(json.dumps(content, indent=1) + "\n")
    for x, y in zip(log2_bytes, factor, strict=True):
        print(f"{2**x / 2**20:6.0f} MiB of KV cache per layer: {y:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
