"""What makes a deployment good: metrics with directions, and bounds that it must keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from revati.deployment.metrics import METRIC_COLUMNS, Slo
from revati.search.errors import ConfigError, unknown
from revati.search.pareto import FloatArray, is_pareto_front

DIRECTIONS = ("max", "min")


def natural_direction(metric: str) -> str:
    """Latencies and durations are better low, rates are better high."""
    return "max" if "_per_s" in metric or metric.endswith("_rate") else "min"


@dataclass(frozen=True, slots=True)
class Objective:
    """Two or three metrics to trade off, the first being the primary, and an SLO.

    ``slo`` maps metrics to bounds: upper ones for what is better low, lower ones for rates.
    ``request_slo`` says which single requests count for goodput.
    """

    metrics: tuple[str, ...]
    directions: tuple[str, ...]
    slo: dict[str, float] = field(default_factory=dict)
    request_slo: Slo = field(default_factory=Slo)

    @classmethod
    def parse(cls, metrics: Sequence[str], slo: Mapping[str, float], request_slo: Slo) -> Objective:
        """Read ``metric`` or ``metric:direction`` for each objective.

        Raises:
            ConfigError: not two or three, or an unknown metric or direction.
        """
        if not 2 <= len(metrics) <= 3:
            raise ConfigError(f"objective.metrics has {len(metrics)} entries; accepted: two or three metrics")
        names, directions = [], []
        for entry in metrics:
            name, _, direction = str(entry).partition(":")
            if name not in METRIC_COLUMNS:
                raise unknown("objective metric", name, METRIC_COLUMNS)
            if direction and direction not in DIRECTIONS:
                raise unknown(f"direction of objective {name}", direction, DIRECTIONS)
            names.append(name)
            directions.append(direction or natural_direction(name))
        if len(set(names)) < len(names):
            raise ConfigError(
                "objective.metrics names one metric twice; accepted: two or three different ones"
            )
        for name, bound in slo.items():
            if name not in METRIC_COLUMNS:
                raise unknown("SLO metric", name, METRIC_COLUMNS)
            if not math.isfinite(bound):
                raise ConfigError(f"objective.slo.{name}={bound}: accepted: a finite number")
        return cls(tuple(names), tuple(directions), dict(slo), request_slo)

    @property
    def primary(self) -> str:
        return self.metrics[0]

    def values(self, row: Mapping[str, float | None]) -> list[float]:
        """The objectives' values in a trial's row; NaN where there is none."""
        return [_number(row.get(metric)) for metric in self.metrics]

    def losses(self, rows: Sequence[Mapping[str, float | None]]) -> FloatArray:
        """The same, signed so that lower is better; shape (rows, objectives)."""
        signs = np.array([-1.0 if direction == "max" else 1.0 for direction in self.directions])
        values = np.array([self.values(row) for row in rows], np.float64)
        return np.asarray(values.reshape(len(rows), len(signs)) * signs, np.float64)

    def violations(self, row: Mapping[str, float | None]) -> dict[str, float]:
        """For each bound by which share it is broken; at most 0 where it is kept, inf where unknown."""
        shares = {}
        for metric, bound in self.slo.items():
            excess = _number(row.get(metric)) - bound
            if natural_direction(metric) == "max":
                excess = -excess
            shares[metric] = math.inf if math.isnan(excess) else excess / (abs(bound) or 1.0)
        return shares

    def meets_slo(self, row: Mapping[str, float | None]) -> bool:
        return all(share <= 0 for share in self.violations(row).values())

    def front(self, rows: Sequence[Mapping[str, float | None]]) -> list[int]:
        """Indices of the Pareto-optimal rows: of those that meet the SLO, of all if none does."""
        meeting = [index for index, row in enumerate(rows) if self.meets_slo(row)]
        eligible = meeting or list(range(len(rows)))
        optimal = is_pareto_front(self.losses([rows[index] for index in eligible]))
        return [index for index, on_front in zip(eligible, optimal, strict=True) if on_front]

    def best(self, rows: Sequence[Mapping[str, float | None]]) -> int | None:
        """Index of the row to recommend: on the front, within the SLO, best by the primary metric.

        Ties go to the next objectives. None if no row meets the SLO.
        """
        candidates = [index for index in self.front(rows) if self.meets_slo(rows[index])]
        if not candidates:
            return None
        losses = self.losses([rows[index] for index in candidates])
        return candidates[min(range(len(candidates)), key=lambda i: tuple(losses[i]))]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
