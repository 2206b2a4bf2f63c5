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
    """A measured batch: where its contexts begin alike, how long it took, and relative to one where none do.

    ``weight``: long batches matter. ``at_a_time``, ``l2_tokens``: as `SharingFit.found_share` has them.
    """

    beginnings: Beginnings
    context_lens: NDArray[np.int64]
    at_a_time: float
    l2_tokens: float
    decodes: bool
    measured_us: float
    ratio: float
    weight: float

    @classmethod
    def of(cls, row: Row, alone_us: float, usual_us: float, limits: GpuLimits) -> Sample:
        requests = len(row["context_lens"])
        return cls(
            Beginnings(np.arange(requests) % row["n"], np.full(requests, row["k"])),
            np.array(row["context_lens"]),
            limits.sm_count / row["num_kv_heads"],
            limits.l2_bytes / token_bytes(row["num_kv_heads"], row["head_dim"], row["dtype"]),
            max(row["query_lens"]) == 1,
            float(row["median_us"]),
            float(row["median_us"]) / alone_us,
            float(np.sqrt(alone_us / usual_us)),
        )

    def expected_ratio(self, fit: SharingFit) -> float:
        share = fit.found_share(self.beginnings, self.context_lens, self.at_a_time, self.l2_tokens)
        return 1.0 - fit.saved(share, self.decodes)


def fit_sharing(rows: Sequence[Row], limits: GpuLimits) -> SharingFit:
    """From rows of kind ``attention_sharing``: requests in turn belong to ``n`` groups, or to none."""
    by_heads = _samples(rows, limits)
    every = [sample for samples in by_heads.values() for sample in samples]
    best = _fit(every)
    off = _weights(every) * _errors(best, every)
    left_out_us = 0.0
    for heads, samples in by_heads.items():
        others = _fit([s for name, own in by_heads.items() if name != heads for s in own])
        errors = _errors(others, samples)
        left_out_us += sum(abs(error) * s.measured_us for error, s in zip(errors, samples, strict=True))
    return replace(
        best,
        rel_std=float(np.sqrt(np.mean(off**2))),
        weighted_error=float(left_out_us / sum(s.measured_us for s in every)),
        rows=len(every),
    )


def _samples(rows: Sequence[Row], limits: GpuLimits) -> dict[tuple[int, int], list[Sample]]:
    """By numbers of heads."""
    alone_us = {_batch(row): float(row["median_us"]) for row in rows if not row["n"]}
    usual_us: dict[tuple[int, int], list[float]] = {}
    for (heads, *_), us in alone_us.items():
        usual_us.setdefault(heads, []).append(us)
    found: dict[tuple[int, int], list[Sample]] = {}
    for row in rows:
        if row["n"]:
            heads, us = _heads(row), alone_us[_batch(row)]
            sample = Sample.of(row, us, float(np.mean(usual_us[heads])), limits)
            found.setdefault(heads, []).append(sample)
    return found


def _fit(samples: Sequence[Sample]) -> SharingFit:
    ratios, weights = np.array([sample.ratio for sample in samples]), _weights(samples)

    def residuals(values: Sequence[float]) -> NDArray[np.float64]:
        one = _of_values(values)
        expected = np.array([sample.expected_ratio(one) for sample in samples])
        return np.asarray(weights * (expected - ratios))

    return _of_values(least_squares(residuals, START, bounds=(0.0, np.inf)).x)


def _of_values(values: Sequence[float]) -> SharingFit:
    decode, mixed, power, reach = map(float, values)
    return SharingFit(decode, mixed, power, reach)


def _errors(fit: SharingFit, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Of the durations, relative."""
    return np.array([sample.expected_ratio(fit) / sample.ratio - 1.0 for sample in samples])


def _weights(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([sample.weight for sample in samples])


def _heads(row: Row) -> tuple[int, int]:
    return row["num_q_heads"], row["num_kv_heads"]


def _batch(row: Row) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    return _heads(row), tuple(row["query_lens"]), tuple(row["context_lens"])
