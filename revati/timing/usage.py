"""Which launches a run made, how long they took, and how well their durations are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from revati.timing.estimate import PROVENANCES, Estimate

UNSEEN = ("extrapolated", "roofline")  # nobody measured this launch or its neighbours


class LaunchLog:
    """Numbers the distinct launches that were priced; the native core counts by these numbers."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, str, Estimate]] = []
        self._numbers: dict[tuple[str, str, str, float], int] = {}

    def add(self, name: str, shape: str, estimate: Estimate) -> int:
        """Launches alike have one number, whichever copy of a kernel they launch and however long they take.

        ``shape`` tells launches of one name apart: grid and block, a product's sizes, or that batches do.
        """
        key = (name, shape, estimate.provenance, estimate.rel_std)
        if key not in self._numbers:
            self._numbers[key] = len(self.launches)
            self.launches.append((name, shape, estimate))
        return self._numbers[key]

    def usage(self, busy_ns: Sequence[int], launches: Sequence[int]) -> Usage:
        """``busy_ns`` and ``launches`` by number."""
        return Usage(
            [
                UsedLaunch(name, shape, estimate, count, ns / 1e3)
                for (name, shape, estimate), ns, count in zip(self.launches, busy_ns, launches, strict=True)
                if count
            ]
        )


@dataclass(frozen=True, slots=True)
class UsedLaunch:
    """One distinct launch: how often it was made and how long all of them took."""

    name: str
    shape: str
    estimate: Estimate
    launches: int
    gpu_time_us: float


@dataclass(frozen=True, slots=True)
class Usage:
    """The distinct launches of a run."""

    used: list[UsedLaunch]

    @classmethod
    def of_tables(cls, tables: Iterable[pa.Table]) -> Usage:
        """What several runs' tables (see `table`) tell together."""
        found: dict[tuple[str, str, str, float], UsedLaunch] = {}
        for row in (row for table in tables for row in table.to_pylist()):
            key = (row["name"], row["shape"], row["provenance"], row["rel_std"])
            estimate = Estimate(row["duration_us"], row["provenance"], row["rel_std"], row["kind"])
            before = found.get(key)
            launches = row["launches"] + (before.launches if before else 0)
            gpu_time_us = row["gpu_time_us"] + (before.gpu_time_us if before else 0.0)
            found[key] = UsedLaunch(row["name"], row["shape"], estimate, launches, gpu_time_us)
        return cls(list(found.values()))

    def shares(self) -> dict[str, float]:
        """Fraction of GPU time by provenance; all zero before anything ran."""
        times = dict.fromkeys(PROVENANCES, 0.0)
        for one in self.used:
            times[one.estimate.provenance] += one.gpu_time_us
        total = sum(times.values())
        return {name: (us / total if total else 0.0) for name, us in times.items()}

    def rel_std(self) -> float:
        """Expected relative error of the GPU time, as if all launches were off in the same direction."""
        total = sum(one.gpu_time_us for one in self.used)
        if not total:
            return 0.0
        return sum(one.estimate.rel_std * one.gpu_time_us for one in self.used) / total

    def unseen(self) -> int:
        """How many distinct launches nobody measured, nor their neighbours."""
        return sum(one.estimate.provenance in UNSEEN for one in self.used)

    def columns(self) -> dict[str, float]:
        """What a trial's row says of its timings."""
        shares = {f"gpu_time_share_{name}": share for name, share in self.shares().items()}
        return {**shares, "gpu_time_rel_std": self.rel_std(), "unseen_kernels": self.unseen()}

    def table(self) -> pa.Table:
        """A row a distinct launch, those that take most GPU time first."""
        ordered = sorted(self.used, key=lambda one: -one.gpu_time_us)
        return pa.table(
            {
                "name": pa.array([one.name for one in ordered], pa.string()),
                "kind": pa.array([one.estimate.kind for one in ordered], pa.string()),
                "shape": pa.array([one.shape for one in ordered], pa.string()),
                "launches": pa.array([one.launches for one in ordered], pa.int64()),
                "gpu_time_us": pa.array([one.gpu_time_us for one in ordered], pa.float64()),
                "duration_us": pa.array([one.gpu_time_us / one.launches for one in ordered], pa.float64()),
                "provenance": pa.array([one.estimate.provenance for one in ordered], pa.string()),
                "rel_std": pa.array([one.estimate.rel_std for one in ordered], pa.float64()),
            }
        )
