"""SGLang's attention, known by how much less its decodes take than vLLM's of the same batch.

Both call FlashAttention 3, each a build of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from revati.timing import db
from revati.timing.attention import KINDS
from revati.timing.estimate import Estimate
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


def sglang_shorter(measured: pa.Table, num_q_heads: int) -> Sequence[Shorter]:
    """Of the main and the combine kernel, as compared for the nearest number of heads; none: as vLLM's."""
    return [_shorter(measured, kind, num_q_heads) for kind in KINDS]


def _shorter(measured: pa.Table, kind: str, num_q_heads: int) -> Shorter:
    columns = ["num_q_heads", "num_reqs", "median_us"]
    rows = db.rows(measured, columns, kind=SGLANG_SHORTER, kernel=kind)
    if not rows:
        return UNKNOWN
    nearest = min((row["num_q_heads"] for row in rows), key=lambda heads: abs(np.log(heads / num_q_heads)))
    points = sorted((row["num_reqs"], row["median_us"]) for row in rows if row["num_q_heads"] == nearest)
    requests, shorter_us = zip(*points, strict=True)
    return Shorter(tuple(map(float, requests)), shorter_us)
