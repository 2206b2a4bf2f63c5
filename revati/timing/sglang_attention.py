"""SGLang's attention, known by how much less its decodes take than vLLM's of the same batch.

Both call FlashAttention 3, each a build of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from revati.timing import db
from revati.timing.attention import KINDS
from revati.timing.estimate import Estimate, RankShape
from revati.timing.schema import SGLANG_SHORTER

LEAST = 0.5  # of vLLM's duration


@dataclass(frozen=True, slots=True)
class Shorter:
    """``shorter_us`` of decodes of so many ``requests``, ascending; on lines in between."""

    requests: tuple[float, ...]
    shorter_us: tuple[float, ...]

    def of(self, theirs: Estimate, requests: int) -> Estimate:
        """From vLLM's of the same batch."""
        duration_us = theirs.duration_us - float(np.interp(requests, self.requests, self.shorter_us))
        return theirs._replace(duration_us=max(duration_us, LEAST * theirs.duration_us))


UNKNOWN = Shorter((1.0,), (0.0,))


def sglang_shorter(measured: pa.Table, shape: RankShape) -> Sequence[Shorter]:
    """Of the main and the combine kernel, as compared for the nearest numbers of heads; none: as vLLM's."""
    return [_shorter(measured, kind, shape) for kind in KINDS]


def _shorter(measured: pa.Table, kind: str, shape: RankShape) -> Shorter:
    columns = ["num_q_heads", "num_kv_heads", "num_reqs", "median_us"]
    by_heads: dict[tuple[int, int], dict[int, list[float]]] = {}
    for row in db.rows(measured, columns, kind=SGLANG_SHORTER, kernel=kind):
        of_heads = by_heads.setdefault((row["num_q_heads"], row["num_kv_heads"]), {})
        of_heads.setdefault(row["num_reqs"], []).append(row["median_us"])
    if not by_heads:
        return UNKNOWN
    nearest = min(by_heads, key=lambda heads: _apart(heads, (shape.num_q_heads, shape.num_kv_heads)))
    points = sorted(by_heads[nearest].items())
    return Shorter(
        tuple(float(requests) for requests, _ in points),
        tuple(statistics.fmean(of_models) for _, of_models in points),
    )


def _apart(heads: tuple[int, int], others: tuple[int, int]) -> float:
    """Of heads of queries and of keys, by what factor both differ."""
    return sum(abs(math.log(one / other)) for one, other in zip(heads, others, strict=True))
