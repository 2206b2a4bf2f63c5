"""How well the database predicts what it was not told: ``python -m revati.timing.report [gpu=NAME]``.

Writes ``kernel_db/REPORT.md``. Every number is from measurements held out of the answer: a point between
its neighbours, a weight shape among the others, batches that attention's trees were not fitted to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from revati import paths
from revati.timing import db
from revati.timing.curve import Curve
from revati.timing.gemm import GemmModel, Key
from revati.timing.gpu import GpuLimits, load_limits
from revati.timing.timer import LAUNCH_KINDS
from revati.timing.trees import Trees

M_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 20000)
SHAPE_SAMPLE = 7  # every seventh point of a held-out shape
Points = list[tuple[float, float]]


def left_out_points(points: Points) -> list[tuple[float, float]]:
    """(place, relative error) of each inner point, interpolated between its neighbours."""
    curve = Curve.from_points(points)
    found = []
    for i in range(1, len(curve.at) - 1):
        rest = Curve(curve.at[:i] + curve.at[i + 1 :], curve.duration_us[:i] + curve.duration_us[i + 1 :])
        predicted = rest.estimate(curve.at[i], "").duration_us
        found.append((curve.at[i], predicted / curve.duration_us[i] - 1.0))
    return found


def left_out_shapes(limits: GpuLimits, points: dict[Key, Points]) -> list[tuple[float, float]]:
    """(m, relative error) for weight shapes answered from the other shapes."""
    found = []
    for key, own in points.items():
        others = {k: [(int(m), us) for m, us in p] for k, p in points.items() if k != key}
        model = GemmModel(limits, others)
        for m, us in sorted(own)[::SHAPE_SAMPLE]:
            predicted = model.estimate(int(m), key[0], key[1], key[2], key[2]).duration_us
            found.append((m, predicted / us - 1.0))
    return found


def report(db_dir: Path, gpu: str) -> str:
    measured = db.read(db_dir, gpu)
    limits = load_limits(paths.conf_dir() / "gpu", gpu)
    gemm = _curves(measured, "gemm", ["n", "k", "dtype"], "m")
    lines = [
        f"# Kernel timings of {gpu}: what is measured and how well it predicts",
        "",
        "Made by `python -m revati.timing.report`; relative errors of predictions for held-out measurements.",
        "",
        "## Measured",
        "",
        "| kind | rows | kernels | measured at |",
        "|---|---|---|---|",
        *_inventory(measured),
        "",
        "## GEMM, a token count left out and interpolated between its neighbours",
        "",
        "The grid's spacing is doubled by leaving a point out, so the error between grid points is smaller.",
        "",
        *_table("m up to", _by_bucket(e for points in gemm.values() for e in left_out_points(points))),
        "",
        "## GEMM, a weight shape left out and answered from the others",
        "",
        *_table("m up to", _by_bucket(left_out_shapes(limits, gemm))),
        "",
        "## Attention, held out of the fit",
        "",
        *_attention(db.partition(db_dir, gpu) / "fitted"),
        "",
        "## Other kernels, a size left out",
        "",
        *_table("kind", _launch_errors(measured)),
        "",
    ]
    return "\n".join(lines)


def _curves(measured: pa.Table, kind: str, keys: list[str], at: str) -> dict[Any, Points]:
    curves: dict[Any, Points] = {}
    for row in db.rows(measured, [*keys, at, "median_us"], kind=kind):
        curves.setdefault(tuple(row[k] for k in keys), []).append((row[at], row["median_us"]))
    return curves


def _inventory(measured: pa.Table) -> Iterable[str]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in measured.select(["kind", "kernel", "measured_at"]).to_pylist():
        kinds.setdefault(row["kind"], []).append(row)
    for kind, rows in sorted(kinds.items()):
        when = sorted({row["measured_at"] for row in rows})
        yield f"| {kind} | {len(rows)} | {len({row['kernel'] for row in rows})} | {', '.join(when)} |"


def _by_bucket(errors: Iterable[tuple[float, float]]) -> dict[str, list[float]]:
    buckets: dict[str, list[float]] = {str(top): [] for top in M_BUCKETS}
    for m, error in errors:
        buckets[str(next(top for top in M_BUCKETS if m <= top))].append(error)
    return {top: found for top, found in buckets.items() if found}


def _table(title: str, errors: dict[str, list[float]]) -> Iterable[str]:
    yield f"| {title} | points | median | p90 | bias |"
    yield "|---|---|---|---|---|"
    for name, found in errors.items():
        size = np.abs(found)
        yield (
            f"| {name} | {len(found)} | {np.median(size):.1%} | {np.percentile(size, 90):.1%} | "
            f"{np.mean(found):+.1%} |"
        )


def _attention(fitted: Path) -> Iterable[str]:
    for kind in ("attention", "combine"):
        path = fitted / f"{kind}.parquet"
        if path.is_file():
            facts = Trees.load(path)[1]
            yield f"- {kind} ({facts['rows']} rows): {facts['held_out']}"


def _launch_errors(measured: pa.Table) -> dict[str, list[float]]:
    families: dict[str, Callable[[], dict[Any, Points]]] = {
        kind: (lambda kind=kind: _launch_curves(measured, kind))  # type: ignore[misc]
        for kind in LAUNCH_KINDS
    }
    families["copy"] = lambda: _curves(measured, "copy", ["variant"], "nbytes")
    families["memset"] = lambda: _curves(measured, "memset", ["variant"], "nbytes")
    families["collective"] = lambda: _curves(measured, "collective", ["kernel", "variant", "ranks"], "nbytes")
    errors = {
        name: [error for points in curves().values() for _, error in left_out_points(points)]
        for name, curves in families.items()
    }
    return {name: found for name, found in errors.items() if found}


def _launch_curves(measured: pa.Table, kind: str) -> dict[Any, Points]:
    curves: dict[Any, Points] = {}
    columns = ["kernel", "block_x", "width", "grid_x", "grid_y", "grid_z", "median_us"]
    for row in db.rows(measured, columns, kind=kind):
        blocks = row["grid_x"] * row["grid_y"] * row["grid_z"]
        key = (row["kernel"], row["block_x"], row["width"])
        curves.setdefault(key, []).append((blocks, row["median_us"]))
    return curves


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "h200")
    target = paths.kernel_db_dir() / "REPORT.md"
    target.write_text(report(paths.kernel_db_dir(), gpu))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
