"""Fits what attention saves where contexts begin alike; see `revati.timing.sharing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from revati.timing.gpu import GpuLimits
from revati.timing.sharing import Beginnings, SharingFit, token_bytes

Row = Mapping[str, Any]

START = (0.3, 0.1, 2.0, 1.2)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured batch, what it takes if no contexts begin alike, and its weight: long batches matter."""

    row: Row
    alone_us: float
    weight: float

    @property
    def ratio(self) -> float:
        return float(self.row["median_us"]) / self.alone_us

    def expected_ratio(self, fit: SharingFit, limits: GpuLimits) -> float:
        row, requests = self.row, len(self.row["context_lens"])
        batch = Beginnings([at % row["n"] for at in range(requests)], [row["k"]] * requests)
        l2_tokens = limits.l2_bytes / token_bytes(row["num_kv_heads"], row["head_dim"], row["dtype"])
        decodes, at_a_time = max(row["query_lens"]) == 1, limits.sm_count / row["num_kv_heads"]
        share = fit.found_share(batch, np.array(row["context_lens"]), at_a_time, l2_tokens)
        return 1.0 - fit.saved(share, decodes)


def fit_sharing(rows: Sequence[Row], limits: GpuLimits) -> SharingFit:
    """From rows of kind ``attention_sharing``: requests in turn belong to ``n`` groups, or to none."""
    by_heads = _samples(rows)
    every = [sample for samples in by_heads.values() for sample in samples]
    best = _fit(every, limits)
    off = _weights(every) * _errors(best, every, limits)
    left_out_us = 0.0
    for heads, samples in by_heads.items():
        others = _fit([s for name, own in by_heads.items() if name != heads for s in own], limits)
        errors = _errors(others, samples, limits)
        left_out_us += sum(abs(error) * s.row["median_us"] for error, s in zip(errors, samples, strict=True))
    return replace(
        best,
        rel_std=float(np.sqrt(np.mean(off**2))),
        weighted_error=float(left_out_us / sum(s.row["median_us"] for s in every)),
        rows=len(every),
    )


def _samples(rows: Sequence[Row]) -> dict[tuple[int, int], list[Sample]]:
    """By numbers of heads."""
    alone_us = {_batch(row): float(row["median_us"]) for row in rows if not row["n"]}
    usual_us: dict[tuple[int, int], list[float]] = {}
    for (heads, *_), us in alone_us.items():
        usual_us.setdefault(heads, []).append(us)
    found: dict[tuple[int, int], list[Sample]] = {}
    for row in rows:
        if row["n"]:
            heads, us = _heads(row), alone_us[_batch(row)]
            sample = Sample(row, us, float(np.sqrt(us / np.mean(usual_us[heads]))))
            found.setdefault(heads, []).append(sample)
    return found


def _fit(samples: Sequence[Sample], limits: GpuLimits) -> SharingFit:
    ratios, weights = np.array([sample.ratio for sample in samples]), _weights(samples)

    def residuals(values: Sequence[float]) -> NDArray[np.float64]:
        one = _of_values(values)
        expected = np.array([sample.expected_ratio(one, limits) for sample in samples])
        return np.asarray(weights * (expected - ratios))

    return _of_values(least_squares(residuals, START, bounds=(0.0, np.inf)).x)


def _of_values(values: Sequence[float]) -> SharingFit:
    decode, mixed, power, reach = map(float, values)
    return SharingFit(decode, mixed, power, reach)


def _errors(fit: SharingFit, samples: Sequence[Sample], limits: GpuLimits) -> NDArray[np.float64]:
    """Of the durations, relative."""
    return np.array([sample.expected_ratio(fit, limits) / sample.ratio - 1.0 for sample in samples])


def _weights(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.weight for sample in samples])


def _heads(row: Row) -> tuple[int, int]:
    return row["num_q_heads"], row["num_kv_heads"]


def _batch(row: Row) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    return _heads(row), tuple(row["query_lens"]), tuple(row["context_lens"])
