"""How much a kernel's time varies from one launch to the next, by how long it takes.

Tensor-parallel ranks run the same kernels and meet in every collective, which starts when the slowest one is
there. The spread of the repeats that each measurement consists of says how far they are apart on one GPU; how
long ranks were seen to wait for each other, by how much more GPUs differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# The kernels between two collectives of a layer.
KINDS = ("gemm", "attention", "combine", "norm", "rope", "activation", "kv_write")
LEAST_REPEATS = 3
# Between the 10 % and 90 % quantiles of five repeats of a normal distribution, interpolated as in the rows.
STDS_BETWEEN_QUANTILES = 1.79
RESOLUTION_US = 0.032  # of the GPU's timestamps
# The expected maximum of so many standard normal deviates, by which the native core makes ranks wait.
EXPECTED_MAXIMUM = {2: 0.564, 4: 1.029, 8: 1.424}


@dataclass(frozen=True, slots=True)
class Wait:
    """How long ranks waited for the last one, in the mean, after kernels that they ran each for itself."""

    ranks: int
    mean_us: float
    kernels_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Jitter:
    """Standard deviation in µs: ``scale_us · duration ^ exponent``."""

    scale_us: float = 0.0
    exponent: float = 0.0

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Jitter:
        """From measurements (``count``, ``median_us``, ``p10_us``, ``p90_us``); none without any."""
        known = [
            (row["median_us"], row["p90_us"] - row["p10_us"])
            for row in rows
            if row["count"] >= LEAST_REPEATS and row["median_us"] > 0 and row["p90_us"] is not None
        ]
        if len(known) < 2:
            return NO_JITTER
        duration_us, between_us = np.array(known).T
        std_us = np.maximum(between_us, RESOLUTION_US) / STDS_BETWEEN_QUANTILES
        exponent, log_scale = np.polyfit(np.log(duration_us), np.log(std_us), 1)
        # Rounded: least squares end in other last digits on other CPUs.
        return cls(round(math.exp(log_scale), 5), round(float(exponent), 5))

    def as_waited(self, waits: Sequence[Wait]) -> Jitter:
        """Such that ranks wait for each other as long as they were seen to; as it is where nobody looked."""
        if not waits or not self.scale_us:
            return self
        factors = []
        for wait in waits:
            std_us = math.hypot(*map(self.std_us, wait.kernels_us))
            factors.append(wait.mean_us / (EXPECTED_MAXIMUM[wait.ranks] * std_us))
        return replace(self, scale_us=round(self.scale_us * statistics.median(factors), 5))

    def std_us(self, duration_us: float) -> float:
        return self.scale_us * float(duration_us**self.exponent) if duration_us > 0 else 0.0


NO_JITTER = Jitter()
