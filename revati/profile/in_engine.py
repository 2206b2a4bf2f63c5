"""Compare attention in recorded engine runs with the timing database's answer, and keep the ratio.

    python -m revati.profile.in_engine GPU MODEL[@TP]=SCENES_DIR ...

Each SCENES_DIR holds activities.parquet and steps.parquet of a host calibration (`revati.profile.host`);
MODEL is a group of conf/model, TP its tensor parallelism (1).  Writes
``kernel_db/gpu=GPU/fitted/attention_in_engine.json`` and, in it, how well the factor from the other
recordings serves each one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from revati.paths import kernel_db_dir
from revati.profile.shapes import rank_shape
from revati.timing.estimate import dtype_bytes
from revati.timing.families import ATTENTION_MAIN
from revati.timing.in_engine import FILE, InEngineCurve
from revati.timing.timer import KernelTimer

# Few recordings from one session each carry no finer shape: a finer or a rising curve fits a model better
# that it was made from, and others worse.  Two levels, by log2 of the bytes, with ramps between them.
LEVELS = ((23.0, 27.0), (27.0, 64.0))
KNOTS = (23.0, 24.0, 26.5, 28.0)
SCENE_LOG2 = 0.5  # steps of one recorded batch differ by less than this

Points = list[tuple[float, float]]  # (log2 of KV bytes per layer, recorded / predicted duration)


def ratios(gpu: str, model: str, tp: int, folder: Path) -> Points:
    """One point for each pure decode step of a recording."""
    shape = rank_shape(model, tp)
    timer = KernelTimer(kernel_db_dir(), gpu, shape, in_engine=False)
    recorded: dict[tuple[str, int], list[float]] = {}
    activities = pq.read_table(folder / "activities.parquet", columns=["scene", "step", "name", "dur_us"])
    for row in activities.to_pylist():
        if ATTENTION_MAIN.search(row["name"]):
            recorded.setdefault((row["scene"], row["step"]), []).append(row["dur_us"])
    token_bytes = 2 * shape.num_kv_heads * shape.head_dim * dtype_bytes(shape.dtype)
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


def scenes(points: Points) -> Points:
    """The medians of steps of about the same size, so that each recorded batch counts once."""
    grouped: dict[int, Points] = {}
    for point in points:
        grouped.setdefault(int(point[0] / SCENE_LOG2), []).append(point)
    return [
        (float(np.median([x for x, _ in own])), float(np.median([y for _, y in own])))
        for own in grouped.values()
    ]


def curve(recordings: list[Points]) -> InEngineCurve:
    """The median ratio on each level; never below 1 nor falling, since more bytes cannot cost less."""
    points = [point for own in recordings for point in scenes(own)]
    levels = [1.0]
    for low, high in LEVELS:
        inside = [y for x, y in points if low <= x < high]
        levels.append(max(levels[-1], float(np.median(inside)) if inside else 1.0))
    return InEngineCurve(KNOTS, (levels[0], levels[1], levels[1], levels[2]))


def error(curve: InEngineCurve, points: Points) -> float:
    """Mean absolute relative error of corrected durations, weighted by the bytes read."""
    weights = np.array([2.0**x for x, _ in points])
    errors = np.array([abs(curve.at(2.0**x) / y - 1.0) for x, y in points])
    return float(np.average(errors, weights=weights))


def left_out(recordings: dict[str, Points]) -> dict[str, dict[str, float]]:
    """Each recording's error without a correction and with that of the others."""
    nothing = InEngineCurve((0.0,), (1.0,))
    return {
        name: {
            "uncorrected": round(error(nothing, points), 4),
            "corrected": round(
                error(curve([p for other, p in recordings.items() if other != name]), points), 4
            ),
        }
        for name, points in recordings.items()
    }


def main() -> int:
    if len(sys.argv) < 3 or not all("=" in argument for argument in sys.argv[2:]):
        print(__doc__, file=sys.stderr)
        return 2
    gpu, recordings = sys.argv[1], {}
    for name, folder in (argument.split("=", 1) for argument in sys.argv[2:]):
        model, _, tp = name.partition("@")
        recordings[name] = ratios(gpu, model, int(tp or 1), Path(folder))
    fitted = curve(list(recordings.values()))
    errors = left_out(recordings)
    content = {
        "log2_bytes": fitted.log2_bytes,
        "factor": [round(value, 4) for value in fitted.factor],
        "steps": sum(map(len, recordings.values())),
        "left_out": errors,
    }
    (kernel_db_dir() / f"gpu={gpu}" / "fitted" / FILE).write_text(json.dumps(content, indent=1) + "\n")
    for x, y in zip(fitted.log2_bytes, fitted.factor, strict=True):
        print(f"{2**x / 2**20:6.0f} MiB of KV cache per layer: {y:.3f}")
    for name, found in errors.items():
        print(f"{name} left out: {found['uncorrected']:.1%} uncorrected, {found['corrected']:.1%} corrected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
