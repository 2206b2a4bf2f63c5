"""FlashAttention-3 durations from a batch's query and context lengths.

Uniform decode batches are looked up in the measured grid of (requests, context) and interpolated in it.
Every other batch is answered by a model fitted to all measured batches: boosted trees that correct a crude
physical schedule (``attention_features``). Without measurements the roofline answers.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from revati.timing import db
from revati.timing.attention_features import FEATURES, Batch, Heads, features, is_graph
from revati.timing.curve import MEASURED_REL_STD
from revati.timing.estimate import Estimate, Provenance, RankShape, dtype_bytes, weaker
from revati.timing.forest import Forest
from revati.timing.gpu import GpuLimits
from revati.timing.in_engine import NO_EFFECT, InEngineCurve
from revati.timing.roofline import roofline
from revati.timing.trees import Trees

UNSEEN_HEADS_REL_STD = 0.15
GRID_REL_STD = 0.03
KINDS = ("attention", "combine")

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Trees for ``log(duration) - log(physical)`` and the error they showed on batches held out."""

    trees: Trees
    rel_std: float
    max_query_tokens: int
    max_context: int

    @classmethod
    def load(cls, path: Path) -> Fitted | None:
        """None where nothing was fitted.

        Raises:
            ValueError: the file was fitted on other features than this version computes.
        """
        if not path.is_file():
            return None
        trees, facts = Trees.load(path)
        if facts["features"] != ",".join(FEATURES):
            raise ValueError(f"{path}: fitted on other features; run `python -m revati.profile.fit`")
        limits = int(facts["max_query_tokens"]), int(facts["max_context"])
        return cls(trees, float(facts["rel_std"]), *limits)


class DecodeGrid:
    """Durations of batches of equal contexts; bilinear in the logarithms between grid points."""

    def __init__(self, points: dict[tuple[int, int], float]) -> None:
        self._contexts: dict[int, tuple[list[int], list[float]]] = {}
        for (requests, context), duration_us in sorted(points.items()):
            at, us = self._contexts.setdefault(requests, ([], []))
            at.append(context)
            us.append(duration_us)
        self._requests = sorted(self._contexts)

    def estimate(self, requests: int, context: int, kind: str) -> Estimate | None:
        """None outside the measured range."""
        i = bisect.bisect_left(self._requests, requests)
        if i < len(self._requests) and self._requests[i] == requests:
            found = self._along_context(requests, context)
            if found is None:
                return None
            exact = context in self._contexts[requests][0]
            provenance: Provenance = "measured" if exact else "interpolated"
            return Estimate(found, provenance, MEASURED_REL_STD if exact else GRID_REL_STD, kind)
        if not 0 < i < len(self._requests):
            return None
        low, high = self._requests[i - 1], self._requests[i]
        below, above = self._along_context(low, context), self._along_context(high, context)
        if below is None or above is None:
            return None
        duration_us = _between(requests, low, high, below, above)
        return Estimate(duration_us, "interpolated", GRID_REL_STD, kind)

    def _along_context(self, requests: int, context: int) -> float | None:
        at, us = self._contexts[requests]
        i = bisect.bisect_left(at, context)
        if i == len(at):
            return None
        if at[i] == context or i == 0:
            return us[i]
        return _between(context, at[i - 1], at[i], us[i - 1], us[i])


def _between(x: float, low: float, high: float, below: float, above: float) -> float:
    share = (x - low) / (high - low)
    return below * (1.0 - share) + above * share


class AttentionModel:
    """Main and combine kernel for one rank's heads.

    Args:
        in_engine: what the batch's KV bytes do to the main kernel inside an engine (see `in_engine`).
    """

    def __init__(
        self,
        limits: GpuLimits,
        shape: RankShape,
        measured: pa.Table,
        fitted_dir: Path,
        in_engine: InEngineCurve = NO_EFFECT,
    ) -> None:
        self._limits = limits
        self._shape = shape
        self._in_engine = in_engine
        self._heads = Heads(shape.num_q_heads, shape.num_kv_heads, shape.head_dim)
        self._pair_flops = 4.0 * shape.num_q_heads * shape.head_dim
        self._token_bytes = 2.0 * shape.num_kv_heads * shape.head_dim * dtype_bytes(shape.dtype)
        mine = db.rows(
            measured,
            ["kind", "variant", "num_tokens", "num_reqs", "context_lens", "median_us"],
            kind=["attention", "combine"],
            num_q_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
        )
        self._seen_heads = bool(mine)
        self._grids = {
            (kind, graph): DecodeGrid(_uniform_decodes(mine, kind, graph))
            for kind in KINDS
            for graph in (True, False)
        }
        fitted = [Fitted.load(fitted_dir / f"{kind}.parquet") for kind in KINDS]
        self._fitted = [one for one in fitted if one is not None]
        if len(self._fitted) == len(KINDS):
            self._forest = Forest([one.trees for one in self._fitted], len(FEATURES))

    def estimate(
        self, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64], full_graphs: bool
    ) -> tuple[Estimate, Estimate]:
        """Main and combine kernel of one layer; ``context_lens`` include the query tokens."""
        batch = Batch.of(query_lens, context_lens)
        main, combine = self._alone(batch, full_graphs)
        factor, provenance = 1.0, main.provenance
        decoded = batch.context_tokens if batch.decodes else int(context_lens.dot(query_lens == 1))
        if decoded:
            inside = self._in_engine.at(decoded * self._token_bytes) - 1.0
            factor += decoded / batch.context_tokens * inside
            provenance = weaker(provenance, "interpolated") if inside else provenance
        main = Estimate(
            main.duration_us * factor,
            provenance,
            main.rel_std,
            main.kind,
            self._pair_flops * batch.pairs,
            self._token_bytes * batch.context_tokens,
        )
        return main, combine

    def _alone(self, batch: Batch, full_graphs: bool) -> tuple[Estimate, Estimate]:
        """Both kernels with nothing before or after them, as they were measured."""
        context_lens = batch.context_lens
        if batch.query_tokens <= 0 or batch.max_context <= 0:  # an idle step still launches the kernels
            nothing = np.zeros(1, dtype=np.int64)
            return (
                self._roofline("attention", nothing, nothing),
                self._roofline("combine", nothing, nothing),
            )
        graph = is_graph(batch.query_tokens, full_graphs)
        if batch.decodes and batch.context_tokens == batch.max_context * len(context_lens):  # all equal
            main = self._grids["attention", graph].estimate(len(context_lens), batch.max_context, "attention")
            combine = self._grids["combine", graph].estimate(len(context_lens), batch.max_context, "combine")
            if main is not None and combine is not None:
                return main, combine
        if len(self._fitted) < len(KINDS):
            return (
                self._roofline("attention", batch.query_lens, context_lens),
                self._roofline("combine", batch.query_lens, context_lens),
            )
        row = features(batch, self._heads, graph, self._limits)
        fitted, fitted_combine = self._fitted
        known = (
            self._seen_heads
            and batch.query_tokens <= fitted.max_query_tokens
            and batch.max_context <= fitted.max_context
        )
        provenance: Provenance = "interpolated" if known else "extrapolated"
        log_main, log_combine = self._forest.predict(row)
        stds = (fitted.rel_std, fitted_combine.rel_std) if known else (UNSEEN_HEADS_REL_STD,) * 2
        return (
            Estimate(math.exp(log_main + row[0]), provenance, stds[0], "attention"),
            Estimate(math.exp(log_combine + row[0]), provenance, stds[1], "combine"),
        )

    def _roofline(
        self, kind: str, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64]
    ) -> Estimate:
        heads, size = self._heads, dtype_bytes(self._shape.dtype)
        qo_bytes = 2.0 * float(query_lens.sum()) * heads.num_q * heads.head_dim
        if kind == "combine":
            return roofline(self._limits, kind, 0.0, qo_bytes * 4)
        pairs = float((query_lens * (context_lens - (query_lens - 1) / 2)).sum())
        flops = 4.0 * pairs * heads.num_q * heads.head_dim
        kv_bytes = 2.0 * float(context_lens.sum()) * heads.num_kv * heads.head_dim
        return roofline(self._limits, kind, flops, (kv_bytes + qo_bytes) * size)


def _uniform_decodes(rows: Rows, kind: str, graph: bool) -> dict[tuple[int, int], float]:
    points: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["kind"] != kind or (row["variant"] == "graph") != graph:
            continue
        contexts = row["context_lens"]
        if row["num_tokens"] == row["num_reqs"] and len(set(contexts)) == 1:
            points[row["num_reqs"], contexts[0]] = row["median_us"]
    return points
