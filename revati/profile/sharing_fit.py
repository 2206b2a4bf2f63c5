"""Fits what attention saves where contexts begin alike; see `revati.timing.sharing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from revati.timing.attention_features import Heads
from revati.timing.gpu import GpuLimits
from revati.timing.sharing import Beginnings, Followers, SharingFit, followers, token_bytes

Row = Mapping[str, Any]

START = (0.3, 0.1, 2.0, 1.2)
_BY_FOLLOWER = ("tokens", "requests_apart", "tokens_apart")


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured batch, how long it took relative to one without anything in common, and its weight."""

    batch: Followers
    decodes: bool
    measured_us: float
    ratio: float
    weight: float

    @classmethod
    def of(cls, row: Row, alone_us: float, usual_us: float, limits: GpuLimits) -> Sample:
        """From a row; long batches weigh more."""
        requests = len(row["context_lens"])
        beginnings = Beginnings([at % row["n"] for at in range(requests)], [row["k"]] * requests)
        at_a_time = limits.sm_count / row["num_kv_heads"]
        l2_tokens = limits.l2_bytes / token_bytes(row["num_kv_heads"], row["head_dim"], row["dtype"])
        batch = followers(beginnings, np.array(row["context_lens"]), at_a_time, l2_tokens)
        measured_us, weight = float(row["median_us"]), float(np.sqrt(alone_us / usual_us))
        return cls(batch, max(row["query_lens"]) == 1, measured_us, measured_us / alone_us, weight)


class Samples:
    """Some of them, all computed at once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        batches = [sample.batch for sample in samples]
        tokens, requests_apart, tokens_apart = (
            np.concatenate([getattr(batch, name) for batch in batches]) for name in _BY_FOLLOWER
        )
        self._every = Followers(tokens, requests_apart, tokens_apart, context_tokens=0)
        self._of = np.repeat(np.arange(len(samples)), [len(batch.tokens) for batch in batches])
        self._context_tokens = np.array([batch.context_tokens for batch in batches])
        self._decodes = np.array([sample.decodes for sample in samples])
        self.measured_us, self.ratios, self.weights = (
            np.array([getattr(sample, name) for sample in samples])
            for name in ("measured_us", "ratio", "weight")
        )

    def expected_ratios(self, fit: SharingFit) -> NDArray[np.float64]:
        found = np.bincount(self._of, fit.found_tokens(self._every), len(self._decodes))
        saved = np.where(self._decodes, fit.decode, fit.mixed) * found / self._context_tokens
        return np.asarray(1.0 - saved)

    def errors(self, fit: SharingFit) -> NDArray[np.float64]:
        """Of the durations, relative."""
        return np.asarray(self.expected_ratios(fit) / self.ratios - 1.0)


def fit_sharing(rows: Sequence[Row], limits: GpuLimits) -> SharingFit:
    """From rows of kind ``attention_sharing``: requests in turn belong to ``n`` groups, or to none."""
    by_heads = _samples(rows, limits)
    every = Samples([sample for samples in by_heads.values() for sample in samples])
    best = _fit(every)
    left_out_us = 0.0
    for heads, left_out in by_heads.items():
        others = _fit(Samples([one for name, own in by_heads.items() if name != heads for one in own]))
        own = Samples(left_out)
        left_out_us += float(np.abs(own.errors(others)) @ own.measured_us)
    return replace(
        best,
        rel_std=float(np.sqrt(np.mean((every.weights * every.errors(best)) ** 2))),
        weighted_error=left_out_us / float(every.measured_us.sum()),
        rows=len(every.ratios),
    )


def _samples(rows: Sequence[Row], limits: GpuLimits) -> dict[Heads, list[Sample]]:
    alone_us = {_batch(row): float(row["median_us"]) for row in rows if not row["n"]}
    usual_us: dict[Heads, list[float]] = {}
    for (heads, *_), us in alone_us.items():
        usual_us.setdefault(heads, []).append(us)
    found: dict[Heads, list[Sample]] = {}
    for row in rows:
        if row["n"]:
            heads, us = Heads.of_row(row), alone_us[_batch(row)]
            sample = Sample.of(row, us, float(np.mean(usual_us[heads])), limits)
            found.setdefault(heads, []).append(sample)
    return found


def _fit(samples: Samples) -> SharingFit:
    def residuals(values: Sequence[float]) -> NDArray[np.float64]:
        expected = samples.expected_ratios(_of_values(values))
        return np.asarray(samples.weights * (expected - samples.ratios))

    return _of_values(least_squares(residuals, START, bounds=(0.0, np.inf)).x)


def _of_values(values: Sequence[float]) -> SharingFit:
    decode, mixed, power, reach = map(float, values)
    return SharingFit(decode, mixed, power, reach)


def _batch(row: Row) -> tuple[Heads, tuple[int, ...], tuple[int, ...]]:
    return Heads.of_row(row), tuple(row["query_lens"]), tuple(row["context_lens"])
