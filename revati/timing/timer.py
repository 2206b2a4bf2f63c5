"""``KernelTimer``: how long the GPU takes for one kernel, from the best source there is.

Order: measured → interpolated between measured neighbours → extrapolated by a fitted model → roofline.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from revati import paths
from revati.timing import db
from revati.timing.attention import AttentionModel
from revati.timing.crowding import CrowdingModel, measured_products
from revati.timing.curve import extrapolated
from revati.timing.estimate import AttentionUse, Estimate, RankShape, weaker
from revati.timing.families import ATTENTION_COMBINE, ATTENTION_MAIN
from revati.timing.gemm import GemmModel, Key, Launches
from revati.timing.gpu import load_limits
from revati.timing.jitter import KINDS, NO_JITTER, Jitter, Wait
from revati.timing.launches import Launch, LaunchModel
from revati.timing.schema import SCALED, TIMED
from revati.timing.sglang_attention import sglang_shorter
from revati.timing.sharing import L2_ENERGY_SAVED, Beginnings, SharingFit, followers, token_bytes
from revati.timing.transfers import CollectiveModel, CopyModel

# Kinds that a kernel's name and launch tell apart; the others have features of their own.
LAUNCH_KINDS = [
    *("norm", "embedding", "rope", "activation", "quant", "kv_write", "elementwise"),
    *("sampling", "input", "attention_schedule"),
]
DEFAULT_GRAPH_GAP_US = 0.5
DEFAULT_LAUNCH_GAP_US = 1.3


class KernelTimer:
    """Durations for one rank of a deployment on one GPU model.

    Args:
        db_dir: the ``kernel_db`` folder.
        gpu: a GPU that the database has.
        shape: the model as one rank sees it.

    Raises:
        UnknownGpuError: the database has no such GPU; the message names those it has.
        SchemaError: a database file has another schema version.
    """

    def __init__(self, db_dir: Path, gpu: str, shape: RankShape) -> None:
        measured = db.read(db_dir, gpu)
        self.limits = limits = load_limits(paths.conf_dir() / "gpu", gpu)
        self.shape = shape
        self._scaled_kinds = {row["kind"] for row in db.rows(measured, ["kind"], method=SCALED)}
        self._gemm = GemmModel(limits, *_gemm_points(measured))
        self._crowding = CrowdingModel(measured_products(measured))
        self._launches = LaunchModel(limits, _launches(measured))
        self._copies = CopyModel(limits, _copy_points(measured))
        self._collectives = CollectiveModel(limits, _collective_points(measured))
        fitted = db.partition(db_dir, gpu) / "fitted"
        self._attention = AttentionModel(limits, shape, measured, fitted)
        self._sglang = sglang_shorter(measured, shape)
        self._sharing = SharingFit.load(fitted)
        self._at_a_time = limits.sm_count / shape.num_kv_heads
        self._l2_tokens = limits.l2_bytes / token_bytes(shape.num_kv_heads, shape.head_dim, shape.dtype)
        # Alone, a rank waits for nobody.
        self._jitter = self._rank_jitter(measured) if shape.tp > 1 else NO_JITTER
        self.graph_gap_us = _gap_us(measured, "graph", DEFAULT_GRAPH_GAP_US)
        self.launch_gap_us = _gap_us(measured, "stream", DEFAULT_LAUNCH_GAP_US)

    def kernel(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        num_tokens: int,
        num_reqs: int,
    ) -> Estimate:
        """A kernel that is no GEMM, no attention and no collective."""
        blocks = math.prod(grid)
        found = self._launches.estimate(name, max(1, blocks), max(1, math.prod(block)), self.shape, num_reqs)
        return self._varying(self._as_known(found))

    def gemm(
        self,
        m: int,
        n: int,
        k: int,
        dtype: str,
        out_dtype: str,
        trans_a: bool = False,
        trans_b: bool = True,
        batch: int = 1,
    ) -> Estimate:
        """out[m, n] = a[m, k] @ w[n, k]^T, ``batch`` times; m is the number of tokens."""
        one = self._gemm.estimate(max(1, m), max(1, n), max(1, k), dtype, out_dtype)
        one = one._replace(crowded=self._crowding.ratio(m, n, one.dtype))
        if batch <= 1:
            return self._varying(one)
        return one._replace(
            duration_us=one.duration_us * batch,
            provenance=weaker(one.provenance, "extrapolated"),
            rel_std=max(one.rel_std, 0.3),
            flops=one.flops * batch,
            nbytes=one.nbytes * batch,
            launches=1,
        )

    def collective(self, op: str, nbytes: int, ranks: int, impl: str) -> Estimate:
        """``op``: all_reduce, all_gather, …; ``impl``: nccl, [sglang_]custom_1stage or …_2stage."""
        return self._collectives.estimate(op, nbytes, ranks, impl)

    def copy(self, direction: str, nbytes: int) -> Estimate:
        """``direction``: h2d, d2h, d2d or memset."""
        return self._as_known(self._copies.estimate(direction, nbytes))

    def _rank_jitter(self, measured: pa.Table) -> Jitter:
        columns = ["count", "median_us", "p10_us", "p90_us"]
        alone = Jitter.of(db.rows(measured, columns, kind=list(KINDS), dtype="bfloat16"))
        waits = []
        for row in db.rows(measured, ["ranks", "m", "n", "k", "median_us"], kind="collective", kernel="wait"):
            products = ((row["n"], row["k"]), (row["k"], row["n"]))
            times_us = (self._gemm.estimate(row["m"], n, k, "bfloat16", "bfloat16") for n, k in products)
            waits.append(Wait(row["ranks"], row["median_us"], tuple(one.duration_us for one in times_us)))
        return alone.as_waited(waits)

    def _varying(self, found: Estimate) -> Estimate:
        if self._jitter is NO_JITTER:
            return found
        return found._replace(std_us=self._jitter.std_us(found.duration_us))

    def _as_known(self, found: Estimate) -> Estimate:
        """What rests on another GPU's measurements is extrapolated."""
        return extrapolated(found) if found.kind in self._scaled_kinds else found

    def is_attention(self, name: str) -> str | None:
        """``'main'``, ``'combine'`` or None."""
        if ATTENTION_COMBINE.search(name):
            return "combine"
        return "main" if ATTENTION_MAIN.search(name) else None

    def attention(
        self,
        query_lens: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        use: AttentionUse = "graph",
        beginnings: Beginnings | None = None,
    ) -> tuple[Estimate, Estimate]:
        """Main and combine kernel of one layer; ``context_lens`` include the query tokens.

        SGLang's was compared in decodes only.
        """
        main, combine = self._attention.estimate(query_lens, context_lens, use == "graph")
        if use == "sglang" and _decodes(query_lens):
            requests = len(query_lens)
            main, combine = (
                own.of(theirs, requests) for own, theirs in zip(self._sglang, (main, combine), strict=True)
            )
        if beginnings is not None:
            main = self._from_l2(main, beginnings, context_lens, _decodes(query_lens))
        return self._varying(main), self._varying(combine)

    def _from_l2(
        self, main: Estimate, beginnings: Beginnings, context_lens: NDArray[np.int64], decodes: bool
    ) -> Estimate:
        """Nobody measured what is saved on some GPUs: there nothing is said to be."""
        if self._sharing is None:
            return extrapolated(main)
        share = self._sharing.found_share(
            followers(beginnings, context_lens, self._at_a_time, self._l2_tokens)
        )
        return main._replace(
            duration_us=main.duration_us * (1.0 - self._sharing.saved(share, decodes)),
            nbytes=main.nbytes * (1.0 - L2_ENERGY_SAVED * share),
            rel_std=math.hypot(main.rel_std, self._sharing.rel_std),
        )


def _decodes(query_lens: NDArray[np.int64]) -> bool:
    return bool(query_lens.sum() == len(query_lens))


def _gap_us(measured: pa.Table, between: str, default_us: float) -> float:
    """Of graphs timed as a whole, if there are any; else traced in engines, or in chains of kernels."""
    found = db.rows(measured, ["variant", "median_us"], kind="gap", kernel=between)
    for variant in (TIMED, "engine", None):
        if chosen := [row["median_us"] for row in found if row["variant"] == variant]:
            return float(statistics.fmean(chosen))
    return default_us


def _gemm_points(measured: pa.Table) -> tuple[dict[Key, list[tuple[int, float]]], Launches]:
    points: dict[Key, list[tuple[int, float]]] = {}
    launches: Launches = {}
    for row in db.rows(measured, ["kernel", "m", "n", "k", "dtype", "median_us"], kind="gemm"):
        key = row["n"], row["k"], row["dtype"]
        points.setdefault(key, []).append((row["m"], row["median_us"]))
        launches.setdefault(key, []).append((row["m"], row["kernel"].count("+") + 1))
    return points, launches


def _launches(measured: pa.Table) -> list[Launch]:
    columns = ["kernel", "grid_x", "grid_y", "grid_z", "block_x", "width", "median_us"]
    return [
        Launch(
            name=row["kernel"],
            blocks=row["grid_x"] * row["grid_y"] * row["grid_z"],
            block_x=row["block_x"],
            width=row["width"] or 0,
            duration_us=row["median_us"],
        )
        for row in db.rows(measured, columns, kind=LAUNCH_KINDS)
    ]


def _copy_points(measured: pa.Table) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in db.rows(measured, ["variant", "nbytes", "median_us"], kind=["copy", "memset"]):
        points.setdefault(row["variant"], []).append((float(row["nbytes"]), row["median_us"]))
    return points


def _collective_points(measured: pa.Table) -> dict[tuple[str, str, int], list[tuple[float, float]]]:
    points: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in db.rows(measured, ["kernel", "variant", "ranks", "nbytes", "median_us"], kind="collective"):
        key = (row["kernel"], row["variant"], row["ranks"])
        points.setdefault(key, []).append((float(row["nbytes"]), row["median_us"]))
    return points
