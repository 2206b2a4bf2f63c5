"""Durations over one growing quantity (tokens, blocks, bytes): look up, interpolate, extrapolate."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from revati.timing.estimate import Estimate, Provenance, weaker

MEASURED_REL_STD = 0.02
INTERPOLATED_REL_STD = 0.05
EXTRAPOLATED_REL_STD = 0.2


def extrapolated(found: Estimate) -> Estimate:
    """The same duration for something else than was asked about: extrapolated at best."""
    provenance, rel_std = weaker(found.provenance, "extrapolated"), max(found.rel_std, EXTRAPOLATED_REL_STD)
    return found._replace(provenance=provenance, rel_std=rel_std)


@dataclass(frozen=True, slots=True)
class Curve:
    """``duration_us`` at ascending, distinct ``at``; never empty."""

    at: tuple[float, ...]
    duration_us: tuple[float, ...]

    @classmethod
    def from_points(cls, points: list[tuple[float, float]]) -> Curve:
        """Points at the same place are averaged."""
        if not points:
            raise ValueError("a curve needs at least one point")
        grouped: dict[float, list[float]] = {}
        for at, duration_us in points:
            grouped.setdefault(float(at), []).append(duration_us)
        places = sorted(grouped)
        return cls(tuple(places), tuple(sum(grouped[p]) / len(grouped[p]) for p in places))

    def estimate(self, at: float, kind: str) -> Estimate:
        i = bisect.bisect_left(self.at, at)
        if i < len(self.at) and self.at[i] == at:
            return Estimate(self.duration_us[i], "measured", MEASURED_REL_STD, kind)
        if 0 < i < len(self.at):
            low, high = self.at[i - 1], self.at[i]
            share = (at - low) / (high - low)
            duration_us = self.duration_us[i - 1] * (1 - share) + self.duration_us[i] * share
            return Estimate(duration_us, "interpolated", INTERPOLATED_REL_STD, kind)
        provenance: Provenance = "extrapolated"
        if i == 0:
            return Estimate(self.duration_us[0], provenance, EXTRAPOLATED_REL_STD, kind)
        return Estimate(self._beyond(at), provenance, EXTRAPOLATED_REL_STD, kind)

    def _beyond(self, at: float) -> float:
        """Past the last point the marginal cost of the upper half goes on; never less than the last point."""
        last_at, last_us = self.at[-1], self.duration_us[-1]
        if len(self.at) == 1:
            return last_us * max(1.0, at / last_at) if last_at > 0 else last_us
        j = min(bisect.bisect_left(self.at, last_at / 2), len(self.at) - 2)
        slope = (last_us - self.duration_us[j]) / (last_at - self.at[j])
        return last_us + max(0.0, slope) * (at - last_at)
