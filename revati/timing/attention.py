"""FlashAttention-3 durations from a batch's query and context lengths.

Uniform decode batches are looked up in the measured grid of (requests, context) and interpolated in it.
Every other batch is answered by a model fitted to all measured batches: boosted trees that correct a crude
physical schedule (``attention_features``). Without measurements the roofline answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from revati.timing import db
from revati.timing.attention_features import (
    FEATURES,
    GRAPH_MAX_TOKENS,
    LAUNCH_US,
    BatchReader,
    Heads,
    parts,
)
from revati.timing.decode_grid import DecodeGrid, equal_decodes
from revati.timing.estimate import Estimate, Provenance, RankShape, dtype_bytes
from revati.timing.forest import Forest
from revati.timing.gpu import GpuLimits
from revati.timing.native import Batch
from revati.timing.roofline import roofline
from revati.timing.trees import Trees

UNSEEN_HEADS_REL_STD = 0.15
# What answers from equal requests alone are worth for others: found for H200 batches of all kinds, answered
# from aiconfigurator's equal ones (ragged decodes 7 to 13 %, with prompts 13 to 27 %).
RAGGED_REL_STD = 0.1
COMPOSED_REL_STD = 0.2
KINDS = ("attention", "combine")
FITTED_FORMAT = "3"


@dataclass(frozen=True, slots=True)
class Fitted:
    """Trees and the error they showed on batches held out.

    Of the main kernel they tell ``log(duration / physical)``, of the combine kernel ``log(duration)``.

    ``equal_requests``: only batches of equal requests were measured, and their times have the reduction over
    splits in them.
    """

    trees: Trees
    rel_std: float
    max_query_tokens: int
    max_context: int
    equal_requests: bool

    @classmethod
    def load(cls, path: Path) -> Fitted | None:
        """None where nothing was fitted.

        Raises:
            ValueError: the file was fitted by a version that computes other features.
        """
        if not path.is_file():
            return None
        trees, facts = Trees.load(path)
        if (facts["features"], facts.get("format")) != (",".join(FEATURES), FITTED_FORMAT):
            raise ValueError(f"{path}: fitted by another version; run `python -m revati.profile.fit`")
        limits = int(facts["max_query_tokens"]), int(facts["max_context"])
        return cls(trees, float(facts["rel_std"]), *limits, facts.get("equal_requests") == "True")


def _inside(main: Estimate) -> Estimate:
    """The combine kernel where its time is in the main kernel's."""
    return Estimate(0.0, main.provenance, main.rel_std, "combine")


class AttentionModel:
    """Main and combine kernel for one rank's heads."""

    def __init__(self, limits: GpuLimits, shape: RankShape, measured: pa.Table, fitted_dir: Path) -> None:
        self._limits = limits
        self._shape = shape
        self._heads = Heads.of_rank(shape)
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
        # Whether these heads were measured: in steps of decodes alone, in steps with prompts.
        self._seen_heads = {row["num_tokens"] == row["num_reqs"] for row in mine}
        self._grids = {
            (kind, graph): DecodeGrid(equal_decodes(mine, kind, graph))
            for kind in KINDS
            for graph in (True, False)
        }
        main = Fitted.load(fitted_dir / "attention.parquet")
        self._equal_requests = main is not None and main.equal_requests
        combine = None if self._equal_requests else Fitted.load(fitted_dir / "combine.parquet")
        self._fitted = [one for one in (main, combine) if one is not None]
        forest = Forest([one.trees for one in self._fitted], len(FEATURES)) if self._fitted else None
        self._reader = BatchReader(self._heads, limits, forest)

    def estimate(
        self, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64], full_graphs: bool
    ) -> tuple[Estimate, Estimate]:
        """Main and combine kernel of one layer; ``context_lens`` include the query tokens."""
        graph_tokens = GRAPH_MAX_TOKENS if full_graphs else 0
        batch = self._reader.read(query_lens, context_lens, graph_tokens)
        main, combine = self._durations(batch, query_lens, context_lens, graph_tokens)
        flops, nbytes = self._pair_flops * batch.pairs, self._token_bytes * batch.context_tokens
        # Not by `_replace`, which takes a tenth of the whole answer's time.
        return Estimate(*main[:4], flops, nbytes), combine

    def _durations(
        self,
        batch: Batch,
        query_lens: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        graph_tokens: int,
    ) -> tuple[Estimate, Estimate]:
        query_tokens, max_context, requests = batch.query_tokens, batch.max_context, len(query_lens)
        if query_tokens <= 0 or max_context <= 0:  # an idle step still launches the kernels
            nothing = np.zeros(1, dtype=np.int64)
            return (
                self._roofline("attention", nothing, nothing),
                self._roofline("combine", nothing, nothing),
            )
        decodes = query_tokens == requests  # one new token for each request
        if decodes and batch.context_tokens == max_context * requests:  # all equal
            graph = query_tokens <= graph_tokens
            main = self._grids["attention", graph].estimate(requests, max_context, "attention")
            if main is not None and self._equal_requests:
                return main, _inside(main)
            combine = self._grids["combine", graph].estimate(requests, max_context, "combine")
            if main is not None and combine is not None:
                return main, combine
        if not self._fitted:
            return (
                self._roofline("attention", query_lens, context_lens),
                self._roofline("combine", query_lens, context_lens),
            )
        if self._equal_requests and not decodes:
            return self._composed(query_lens, context_lens, query_tokens <= graph_tokens)
        return self._from_trees(batch, decodes)

    def _composed(
        self, query_lens: NDArray[np.int64], context_lens: NDArray[np.int64], graph: bool
    ) -> tuple[Estimate, Estimate]:
        """Prompts as equal ones of the same work, and after them the decodes; from one launch."""
        mains = []
        for queries, contexts in parts(query_lens, context_lens):
            part = self._reader.read(queries, contexts, int(queries.sum()) if graph else 0)
            mains.append(self._from_trees(part, part.query_tokens == len(queries))[0])
        launch_us = LAUNCH_US * (len(mains) - 1)
        main = Estimate(
            max(sum(one.duration_us for one in mains) - launch_us, *(one.duration_us for one in mains), 0.0),
            "extrapolated",
            COMPOSED_REL_STD,
            "attention",
        )
        return main, _inside(main)

    def _from_trees(self, batch: Batch, decodes: bool) -> tuple[Estimate, Estimate]:
        fitted = self._fitted[0]
        known = (
            decodes in self._seen_heads
            and batch.query_tokens <= fitted.max_query_tokens
            and batch.max_context <= fitted.max_context
        )
        provenance: Provenance = "interpolated" if known else "extrapolated"
        least_std = RAGGED_REL_STD if self._equal_requests else 0.0
        if not known:
            least_std = UNSEEN_HEADS_REL_STD
        durations_us = batch.durations_us
        main = Estimate(durations_us[0], provenance, max(fitted.rel_std, least_std), KINDS[0])
        if self._equal_requests:
            return main, _inside(main)
        rel_std = max(self._fitted[1].rel_std, least_std)
        return main, Estimate(durations_us[1], provenance, rel_std, KINDS[1])

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
