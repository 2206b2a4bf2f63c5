"""How well the database predicts what it was not told: ``python -m revati.timing.report``.

Writes ``kernel_db/REPORT.md``, a chapter for each GPU. Every number is from measurements held out of the
answer: a point between its neighbours, a weight shape among the others, batches that attention's trees were
not fitted to. What counts for a prediction is the error of the sum of times, so errors are weighted by
duration.
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
from revati.timing.crowding import Crowded, CrowdingModel, measured_products
from revati.timing.curve import Curve
from revati.timing.estimate import FP8, Estimate
from revati.timing.gemm import MEASURED_EVERYWHERE, GemmModel, Key, curve_of, full_clock_tokens
from revati.timing.gpu import GpuLimits, load_limits
from revati.timing.sharing import SharingFit
from revati.timing.timer import LAUNCH_KINDS
from revati.timing.trees import Trees

M_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHAPE_SAMPLE = 7  # every seventh point of a held-out shape
TARGETS = {"gemm": 0.03, "attention": 0.05}  # of the weighted error; all other families:
OTHER_TARGET = 0.08

Points = list[tuple[float, float]]
Held = tuple[float, float, float]  # place, predicted duration in µs, measured duration in µs


def left_out_points(points: Points, estimate: Callable[[Curve, Any], Estimate] | None = None) -> list[Held]:
    """Each inner point, interpolated between its neighbours (by ``estimate`` where a line is not all)."""
    estimate = estimate or (lambda curve, at: curve.estimate(at, ""))
    curve = Curve.from_points(points)
    found = []
    for i in range(1, len(curve.at) - 1):
        rest = Curve(curve.at[:i] + curve.at[i + 1 :], curve.duration_us[:i] + curve.duration_us[i + 1 :])
        found.append((curve.at[i], estimate(rest, curve.at[i]).duration_us, curve.duration_us[i]))
    return found


def left_out_shapes(limits: GpuLimits, points: dict[Key, Points]) -> list[Held]:
    """Weight shapes answered from the other shapes."""
    found = []
    for key, own in points.items():
        others = {k: [(int(m), us) for m, us in p] for k, p in points.items() if k != key}
        model = GemmModel(limits, others)
        for m, us in sorted(own)[::SHAPE_SAMPLE]:
            found.append((m, model.estimate(int(m), *key, key[2]).duration_us, us))
    return found


def weighted(held: Iterable[Held]) -> float:
    """Mean absolute relative error, weighted by the measured duration."""
    rows = list(held)
    return sum(abs(guess - us) for _, guess, us in rows) / sum(us for _, _, us in rows)


def report(db_dir: Path) -> str:
    lines = [
        "# Kernel timings: what is measured and how well it predicts",
        "",
        "Made by `python -m revati.timing.report`; errors of predictions for held-out measurements. The mean",
        "absolute error is weighted by duration.",
        "",
        "GEMM, a token count left out: it is interpolated between its neighbours. The grid's spacing is",
        "doubled by leaving a point out, so the error between grid points is smaller. In bf16 up to",
        f"{full_clock_tokens(MEASURED_EVERYWHERE)} tokens: longer ones met the power limit when measured.",
        "`python -m revati.profile.power_fit` says how well the power model explains what it does.",
        "",
    ]
    for gpu in db.known_gpus(db_dir):
        lines += chapter(db_dir, gpu)
    return "\n".join(lines)


def chapter(db_dir: Path, gpu: str) -> list[str]:
    """The lines about one GPU."""
    measured = db.read(db_dir, gpu)
    limits = load_limits(paths.conf_dir() / "gpu", gpu)
    folder = db.partition(db_dir, gpu) / "fitted"
    every = _curves(measured, "gemm", ["n", "k", "dtype"], "m")
    gemm = {key: [(m, us) for m, us in own if m <= full_clock_tokens(key[2])] for key, own in every.items()}
    dtypes = sorted({key[2] for key in gemm})  # bfloat16 first
    points = {dtype: _left_out_tokens(gemm, dtype) for dtype in dtypes}
    others = _launch_errors(measured)
    return [
        f"## {gpu}",
        "",
        "### Leave-one-out error by family",
        "",
        "| family | points | weighted mean | target |",
        "|---|---|---|---|",
        *(_verdict(_gemm_of(dtype), len(held), weighted(held)) for dtype, held in points.items()),
        *_attention_verdicts(folder),
        *(_verdict(kind, len(held), weighted(held)) for kind, held in others.items()),
        "",
        "### Measured",
        "",
        "| kind | rows | kernels | measured at |",
        "|---|---|---|---|",
        *_inventory(measured),
        "",
        *(line for dtype in dtypes for line in _gemm_tables(limits, gemm, dtype, points[dtype])),
        *_crowded_tables(measured_products(measured)),
        "### Attention, held out of the fit",
        "",
        *_attention(folder),
        "",
        "### Other kernels, a size left out",
        "",
        *_table("kind", others),
        "",
    ]


def _gemm_of(dtype: str) -> str:
    return "gemm" if dtype == MEASURED_EVERYWHERE else f"gemm, {dtype}"


def _left_out_tokens(gemm: dict[Key, Points], dtype: str) -> list[Held]:
    return [
        held
        for key, own in gemm.items()
        if key[2] == dtype
        for held in left_out_points(own, lambda curve, m: curve_of(dtype, curve).estimate(int(m)))
    ]


def _gemm_tables(
    limits: GpuLimits, gemm: dict[Key, Points], dtype: str, left_out: list[Held]
) -> Iterable[str]:
    title = "GEMM" if dtype == MEASURED_EVERYWHERE else f"GEMM of {dtype}"
    own = {key: points for key, points in gemm.items() if key[2] == dtype}
    tables = {"a token count left out": left_out}
    tables["a weight shape left out and answered from the others"] = left_out_shapes(limits, own)
    others = {key: points for key, points in gemm.items() if key[2] == MEASURED_EVERYWHERE}
    if dtype in FP8 and others:
        tables["all left out and answered from bfloat16's efficiency"] = _from_others(limits, own, others)
    for name, held in tables.items():
        yield from (f"### {title}, {name}", "", *_table("m up to", _by_bucket(held)), "")


def _from_others(limits: GpuLimits, own: dict[Key, Points], others: dict[Key, Points]) -> list[Held]:
    model = GemmModel(limits, {key: [(int(m), us) for m, us in points] for key, points in others.items()})
    return [
        (m, model.estimate(int(m), *key, MEASURED_EVERYWHERE).duration_us, us)
        for key, points in own.items()
        for m, us in points
    ]


def _crowded_tables(products: list[Crowded]) -> Iterable[str]:
    for dtype in sorted({one.dtype for one in products}):
        own = [one for one in products if one.dtype == dtype]
        every_other, width_left_out = [], []
        for width in sorted({one.n for one in own}):
            along = sorted((one for one in own if one.n == width), key=lambda one: one.m)
            every_other += _beside(CrowdingModel(along[::2]), along[1:-1:2])
            width_left_out += _beside(CrowdingModel(one for one in own if one.n != width), along)
        for what, held in (("every other token count", every_other), ("a width", width_left_out)):
            title = f"### Products of {dtype} beside a waiting broadcast, {what} left out"
            yield from (title, "", *_table("m up to", _by_bucket(held)), "")


def _beside(model: CrowdingModel, products: Iterable[Crowded]) -> list[Held]:
    return [(one.m, one.alone_us * model.ratio(one.m, one.n, one.dtype), one.beside_us) for one in products]


def _verdict(family: str, points: int, error: float) -> str:
    target = TARGETS.get(family.partition(",")[0], OTHER_TARGET)
    return (
        f"| {family} | {points} | {error:.1%} | {'' if error <= target else '**missed:** '}≤ {target:.0%} |"
    )


def _attention_verdicts(fitted: Path) -> Iterable[str]:
    for kind in ("attention", "combine"):
        path = fitted / f"{kind}.parquet"
        if path.is_file():
            facts = Trees.load(path)[1]
            yield _verdict(kind, int(facts["rows"]), float(facts["weighted_error"]))
    if (sharing := SharingFit.load(fitted)) is not None:
        yield _verdict("attention, where contexts begin alike", sharing.rows, sharing.weighted_error)


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


def _by_bucket(held: Iterable[Held]) -> dict[str, list[Held]]:
    buckets: dict[str, list[Held]] = {str(top): [] for top in M_BUCKETS}
    for one in held:
        buckets[str(next(top for top in M_BUCKETS if one[0] <= top))].append(one)
    return {top: found for top, found in buckets.items() if found}


def _table(title: str, errors: dict[str, list[Held]]) -> Iterable[str]:
    yield f"| {title} | points | weighted mean | median | p90 | bias |"
    yield "|---|---|---|---|---|---|"
    for name, held in errors.items():
        if not held:
            continue
        relative = np.array([guess / us - 1.0 for _, guess, us in held])
        size = np.abs(relative)
        yield (
            f"| {name} | {len(held)} | {weighted(held):.1%} | {np.median(size):.1%} | "
            f"{np.percentile(size, 90):.1%} | {np.mean(relative):+.1%} |"
        )


def _attention(fitted: Path) -> Iterable[str]:
    for kind in ("attention", "combine"):
        path = fitted / f"{kind}.parquet"
        if path.is_file():
            facts = Trees.load(path)[1]
            yield f"- {kind} ({facts['rows']} rows): {facts['held_out']}"


def _launch_errors(measured: pa.Table) -> dict[str, list[Held]]:
    families = {kind: _launch_curves(measured, kind) for kind in LAUNCH_KINDS}
    families["copy"] = _curves(measured, "copy", ["variant"], "nbytes")
    families["memset"] = _curves(measured, "memset", ["variant"], "nbytes")
    families["collective"] = _curves(measured, "collective", ["kernel", "variant", "ranks"], "nbytes")
    held = {
        name: [one for points in curves.values() for one in left_out_points(points)]
        for name, curves in families.items()
    }
    return {name: found for name, found in held.items() if found}


def _launch_curves(measured: pa.Table, kind: str) -> dict[Any, Points]:
    curves: dict[Any, Points] = {}
    columns = ["kernel", "block_x", "width", "grid_x", "grid_y", "grid_z", "median_us"]
    for row in db.rows(measured, columns, kind=kind):
        blocks = row["grid_x"] * row["grid_y"] * row["grid_z"]
        key = (row["kernel"], row["block_x"], row["width"])
        curves.setdefault(key, []).append((blocks, row["median_us"]))
    return curves


def main() -> int:
    target = paths.kernel_db_dir() / "REPORT.md"
    target.write_text(report(paths.kernel_db_dir()))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
