"""Measure a sample of the database again, and say by how much it drifted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from revati.profile.shapes import Shape
from revati.timing import db
from revati.timing.attention_features import Heads

Row = dict[str, Any]
# Of numbers of tokens by weight shape, a data type, and the shapes outside of CUDA graphs.
Gemms = Callable[[dict[Shape, list[int]], str, set[Shape]], list[Row]]

GEMM_SHAPES, TOKENS_PER_SHAPE = 6, 5
HEADS, BATCHES_PER_HEADS = 2, 12
TOLERANCE = 0.05  # two sessions on two H200s differed by 3.6 % (standard deviation) in GEMMs


@dataclass(frozen=True, slots=True)
class Drift:
    """A family's second measurements relative to its first ones."""

    family: str
    points: int
    median: float
    p90_abs: float

    @property
    def ok(self) -> bool:
        return abs(self.median) <= TOLERANCE

    def __str__(self) -> str:
        verdict = "as before" if self.ok else f"drifted by more than {TOLERANCE:.0%}: measure it again"
        return (
            f"{self.family}: {self.points} points again, median {self.median:+.1%}, "
            f"p90 of the difference {self.p90_abs:.1%}; {verdict}"
        )


def drift(family: str, before: dict[Any, float], again: Iterable[tuple[Any, float]]) -> Drift:
    """Compare second measurements, by key, with the first ones of the same keys."""
    ratios = np.array([us / before[key] - 1.0 for key, us in again if key in before])
    if not len(ratios):
        raise ValueError(f"{family}: nothing measured again is in the database")
    return Drift(family, len(ratios), float(np.median(ratios)), float(np.percentile(np.abs(ratios), 90)))


def gemm_sample(measured: pa.Table, seed: int, dtype: str = "bfloat16") -> dict[Shape, list[int]]:
    """Some tokens, small and large, of some weight shapes."""
    tokens: dict[Shape, list[int]] = {}
    for row in db.rows(measured, ["m", "n", "k"], kind="gemm", dtype=dtype):
        tokens.setdefault((row["n"], row["k"]), []).append(row["m"])
    draw = random.Random(seed)
    chosen = draw.sample(sorted(tokens), min(GEMM_SHAPES, len(tokens)))
    return {shape: _spread(sorted(set(tokens[shape])), TOKENS_PER_SHAPE, draw) for shape in chosen}


def attention_sample(measured: pa.Table, seed: int) -> dict[Heads, list[Row]]:
    """Some batches, short and long, of some head counts."""
    rows: dict[Heads, list[Row]] = {}
    columns = [
        "variant",
        "num_q_heads",
        "num_kv_heads",
        "head_dim",
        "query_lens",
        "context_lens",
        "median_us",
    ]
    for row in db.rows(measured, columns, kind="attention"):
        rows.setdefault(Heads.of_row(row), []).append(row)
    draw = random.Random(seed)
    chosen = draw.sample(sorted(rows), min(HEADS, len(rows)))
    return {
        heads: _spread(sorted(rows[heads], key=lambda row: row["median_us"]), BATCHES_PER_HEADS, draw)
        for heads in chosen
    }


def _spread(ordered: list[Any], count: int, draw: random.Random) -> list[Any]:
    """One of each of ``count`` equal parts."""
    edges = np.linspace(0, len(ordered), min(count, len(ordered)) + 1).astype(int)
    return [ordered[draw.randrange(low, high)] for low, high in pairwise(edges)]


def check(
    measured: pa.Table,
    families: tuple[str, ...],
    gemms: Gemms,
    attention: Callable[[Heads, list[Row]], list[Row]],
    dtypes: Iterable[str] = ("bfloat16",),
    seed: int = 0,
) -> list[Drift]:
    """Measure a sample of GEMMs and attention batches again, as far as the families have any.

    Args:
        attention: (heads, rows that name batches) → rows.
    """
    found = [
        _gemm_drift(measured, dtype, shapes, gemms)
        for dtype in (dtypes if "gemm" in families else ())
        if (shapes := gemm_sample(measured, seed, dtype))
    ]
    if "attention" in families and (batches := attention_sample(measured, seed)):
        before = {_key(row): row["median_us"] for own in batches.values() for row in own}
        again = [row for heads, own in batches.items() for row in attention(heads, own)]
        second = ((_key(row), row["median_us"]) for row in again if row["kind"] == "attention")
        found.append(drift("attention", before, second))
    return found


def _gemm_drift(measured: pa.Table, dtype: str, tokens: dict[Shape, list[int]], gemms: Gemms) -> Drift:
    first: dict[Any, list[float]] = {}
    in_graphs = set()
    for row in db.rows(measured, ["variant", "m", "n", "k", "median_us"], kind="gemm", dtype=dtype):
        shape = row["n"], row["k"]
        if row["variant"] == "graph":
            in_graphs.add(shape)
        if row["m"] in tokens.get(shape, ()):
            first.setdefault((row["m"], *shape), []).append(row["median_us"])
    before: dict[Any, float] = {key: float(np.mean(durations)) for key, durations in first.items()}
    rows = gemms(tokens, dtype, set(tokens) - in_graphs)
    name = "gemm" if dtype == "bfloat16" else f"gemm {dtype}"
    return drift(name, before, (((r["m"], r["n"], r["k"]), r["median_us"]) for r in rows))


def _key(row: Row) -> tuple[Any, ...]:
    return row["variant"], Heads.of_row(row), tuple(row["query_lens"]), tuple(row["context_lens"])
