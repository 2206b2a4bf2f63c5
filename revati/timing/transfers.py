"""Copies by direction and size, collectives by algorithm, ranks and size."""

from __future__ import annotations

from revati.timing.curve import Curve, extrapolated
from revati.timing.estimate import Estimate
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import FLOOR_US, REL_STD, collective_roofline

DIRECTIONS = ("h2d", "d2h", "d2d", "memset")
# Operations that move as much as another one; ``nbytes`` is the smaller of a rank's two buffers in both.
SIMILAR = {"reduce_scatter": "all_gather", "broadcast": "all_reduce", "reduce": "all_reduce"}
# SGLang's own all-reduce was copied from vLLM's.
COPIED = {"sglang_custom_1stage": "custom_1stage", "sglang_custom_2stage": "custom_2stage"}
HOST_LINK_SHARE = 0.012  # of device memory bandwidth; only where no copy was measured


class CopyModel:
    def __init__(self, limits: GpuLimits, points: dict[str, list[tuple[float, float]]]) -> None:
        self._limits = limits
        self._curves = {direction: Curve.from_points(found) for direction, found in points.items()}

    def estimate(self, direction: str, nbytes: int) -> Estimate:
        if direction not in DIRECTIONS:
            raise ValueError(f"unknown copy direction {direction!r}; known: {', '.join(DIRECTIONS)}")
        kind = "memset" if direction == "memset" else "copy"
        curve = self._curves.get(direction)
        if curve is not None:
            return curve.estimate(nbytes, kind)
        rate = self._limits.memory_bytes_per_us * (HOST_LINK_SHARE if direction in ("h2d", "d2h") else 0.5)
        return Estimate(FLOOR_US + nbytes / rate, "roofline", REL_STD, kind)


class CollectiveModel:
    """Curves over one rank's bytes per (operation, algorithm, ranks).

    They were measured in rows of equal ones.  Operation `meeting` is an all-reduce between products, as in a
    step, where it takes longer; what it does so goes on beyond the sizes that were measured there.
    """

    def __init__(
        self, limits: GpuLimits, points: dict[tuple[str, str, int], list[tuple[float, float]]]
    ) -> None:
        self._limits = limits
        self._curves = {key: Curve.from_points(found) for key, found in points.items()}

    def estimate(self, op: str, nbytes: int, ranks: int, impl: str) -> Estimate:
        if op in ("send", "recv"):  # between two ranks, however many the communicator has
            return self.estimate("send_recv", nbytes, 2, impl)
        curve = self._curves.get((op, impl, ranks))
        if curve is not None:
            alone = curve.estimate(nbytes, "collective")
            return self._in_a_step(alone, nbytes, ranks, impl) if op == "all_reduce" else alone
        if impl in COPIED:
            return extrapolated(self.estimate(op, nbytes, ranks, COPIED[impl]))
        if op in SIMILAR and (SIMILAR[op], impl, ranks) in self._curves:
            return extrapolated(self._curves[SIMILAR[op], impl, ranks].estimate(nbytes, "collective"))
        nearest = self._nearest_ranks(op, impl, ranks)
        if nearest is not None:
            return extrapolated(self._curves[(op, impl, nearest)].estimate(nbytes, "collective"))
        return collective_roofline(self._limits, op, nbytes, ranks)

    def _in_a_step(self, alone: Estimate, nbytes: int, ranks: int, impl: str) -> Estimate:
        nearest = self._nearest_ranks("meeting", impl, ranks)
        if nearest is None:
            return alone
        meeting = self._curves["meeting", impl, nearest]
        at = min(max(nbytes, meeting.at[0]), meeting.at[-1])
        in_a_row = self._curves["all_reduce", impl, nearest].estimate(at, "collective")
        longer_us = max(0.0, meeting.estimate(at, "collective").duration_us - in_a_row.duration_us)
        found = alone._replace(duration_us=alone.duration_us + longer_us)
        return found if nearest == ranks else extrapolated(found)

    def _nearest_ranks(self, op: str, impl: str, ranks: int) -> int | None:
        known = [r for o, i, r in self._curves if (o, i) == (op, impl)]
        return min(known, key=lambda r: (abs(r - ranks), r)) if known else None
