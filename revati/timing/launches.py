"""Kernels that a launch describes fully: norms, rope, activations, KV writes, input and sampling kernels."""

from __future__ import annotations

from dataclasses import dataclass

from revati.timing.curve import EXTRAPOLATED_REL_STD, Curve
from revati.timing.estimate import Estimate, RankShape
from revati.timing.families import family, without_number
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import REL_STD, roofline_us

BYTES_PER_THREAD = 32  # a guess for unknown kernels: 16 bytes read and 16 written

# What one block row of the launch works on, where the launch alone doesn't say it.
ROW_KINDS = frozenset({"norm", "embedding", "kv_write"})


@dataclass(frozen=True, slots=True)
class Launch:
    """One measured launch: ``width`` is the elements per row (0 if the launch says all)."""

    name: str
    blocks: int
    block_x: int
    width: int
    duration_us: float


def row_width(kind: str, shape: RankShape) -> int:
    """Elements per block row for kernels with one block per token."""
    if kind in ("norm", "embedding"):
        return shape.hidden
    if kind == "kv_write":
        return shape.num_kv_heads * shape.head_dim
    return 0


class LaunchModel:
    """Looks for the same kernel, then the same kernel under another number, then its family."""

    def __init__(self, limits: GpuLimits, launches: list[Launch]) -> None:
        self._limits = limits
        by_name: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
        by_family: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for launch in launches:
            for name in {launch.name, without_number(launch.name)}:
                key = (name, launch.block_x, launch.width)
                by_name.setdefault(key, []).append((launch.blocks, launch.duration_us))
            kind = family(launch.name)
            work = launch.blocks * (launch.width or launch.block_x)
            by_family.setdefault((kind, int(bool(launch.width))), []).append((work, launch.duration_us))
        self._by_name = {key: Curve.from_points(points) for key, points in by_name.items()}
        self._by_family = {key: Curve.from_points(points) for key, points in by_family.items()}

    def estimate(self, name: str, blocks: int, block_x: int, shape: RankShape) -> Estimate:
        kind = family(name)
        width = row_width(kind, shape) if kind in ROW_KINDS else 0
        for known in (name, without_number(name)):
            curve = self._by_name.get((known, block_x, width))
            if curve is not None:
                return curve.estimate(blocks, kind)
        curve = self._by_family.get((kind, int(bool(width))))
        if curve is not None and kind != "elementwise":
            found = curve.estimate(blocks * (width or block_x), kind)
            return Estimate(found.duration_us, "extrapolated", EXTRAPOLATED_REL_STD, kind)
        nbytes = float(blocks) * block_x * BYTES_PER_THREAD
        return Estimate(roofline_us(self._limits, 0.0, nbytes), "roofline", REL_STD, kind)
