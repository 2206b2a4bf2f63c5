"""Kernels that a launch describes fully: norms, rope, activations, KV writes, input and sampling kernels."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from revati.timing.curve import Curve, extrapolated
from revati.timing.estimate import Estimate, RankShape
from revati.timing.families import family, without_number
from revati.timing.gpu import GpuLimits
from revati.timing.roofline import ATTAINABLE, REL_STD, roofline_us

FEW_BLOCKS = 8
SGLANG_ACTIVATION = "(anonymous namespace)::act_and_mul_kernel"
ARGMAX, ARGMAX_THREADS = "ArgMaxOps", 512
BYTES_PER_THREAD = 32  # a guess for unknown kernels: 16 bytes read and 16 written


@dataclass(frozen=True, slots=True)
class Launch:
    """One measured launch: ``width`` is the elements per row (0 if the launch says all)."""

    name: str
    blocks: int
    block_x: int
    width: int
    duration_us: float


def row_width(name: str, kind: str, shape: RankShape) -> int:
    """Elements per block, for kernels with one block per token; 0 where the launch says it all.

    Inductor's pointwise kernels and SGLang's activation spread all elements over blocks of a fixed size;
    vLLM's own activation and rotary kernels take a block per token.
    """
    if kind in ("norm", "embedding"):
        return shape.hidden
    if kind == "quant":
        return _quantised_width(name, shape)
    if kind == "kv_write":
        return shape.num_kv_heads * shape.head_dim
    if kind == "activation" and not name.startswith("triton_") and SGLANG_ACTIVATION not in name:
        return shape.intermediate
    if kind == "rope" and not name.startswith("triton_"):
        return (shape.num_q_heads + shape.num_kv_heads) * shape.head_dim
    return 0


def _quantised_width(name: str, shape: RankShape) -> int:
    """Of what goes into qkv and gate_up, into down, and into o; 0 where the kernel's name doesn't tell."""
    if not name.startswith("triton_"):
        return 0
    if "rms_norm" in name:
        return shape.hidden
    return shape.intermediate if "silu" in name else shape.num_q_heads * shape.head_dim


def argmax_width(name: str, blocks: int, block_x: int, num_reqs: int, shape: RankShape) -> int:
    """Elements per row of an argmax: SGLang's runs over the vocabulary, vLLM's over what is left of it.

    ATen gives a long row of each request a whole block, and puts several short ones into one.
    """
    if ARGMAX in name and block_x >= ARGMAX_THREADS and blocks >= num_reqs > 0:
        return shape.vocab * shape.tp
    return 0


class LaunchModel:
    """Looks for the same kernel, then under another number, then with other blocks, then for its family."""

    def __init__(self, limits: GpuLimits, launches: list[Launch]) -> None:
        self._limits = limits
        by_name: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
        by_work: dict[tuple[str, int], list[tuple[float, float]]] = {}
        by_family: dict[tuple[str, int], list[tuple[float, float]]] = {}
        by_fusion: dict[str, list[tuple[float, float]]] = {}
        for launch in launches:
            for name in {launch.name, without_number(launch.name)}:
                key = (name, launch.block_x, launch.width)
                by_name.setdefault(key, []).append((launch.blocks, launch.duration_us))
            kind = family(launch.name)
            work = launch.blocks * (launch.width or launch.block_x)
            by_work.setdefault((without_number(launch.name), launch.width), []).append(
                (work, launch.duration_us)
            )
            by_family.setdefault((kind, int(bool(launch.width))), []).append((work, launch.duration_us))
            if kind == "quant":  # what is fused in matters more than how wide it is
                for name in {launch.name, without_number(launch.name)}:
                    by_fusion.setdefault(name, []).append((work, launch.duration_us))
        small = [
            x.duration_us for x in launches if family(x.name) == "elementwise" and x.blocks <= FEW_BLOCKS
        ]
        self._floor_us = statistics.median(small) if small else None
        self._by_name = {key: Curve.from_points(points) for key, points in by_name.items()}
        self._by_work = {key: Curve.from_points(points) for key, points in by_work.items()}
        self._by_family = {key: Curve.from_points(points) for key, points in by_family.items()}
        self._by_fusion = {name: Curve.from_points(points) for name, points in by_fusion.items()}

    def estimate(self, name: str, blocks: int, block_x: int, shape: RankShape, num_reqs: int = 0) -> Estimate:
        kind = family(name)
        width = row_width(name, kind, shape) or argmax_width(name, blocks, block_x, num_reqs, shape)
        for known in (name, without_number(name)):
            curve = self._by_name.get((known, block_x, width))
            if curve is not None:
                return curve.estimate(blocks, kind)
        work = blocks * (width or block_x)
        curve = self._by_work.get((without_number(name), width))  # with blocks of another size
        if curve is None:
            curve = self._by_fusion.get(name) or self._by_fusion.get(without_number(name))
        if curve is None and kind != "elementwise":
            curve = self._by_family.get((kind, int(bool(width))))
        if curve is not None:
            return extrapolated(curve.estimate(work, kind))
        nbytes = float(blocks) * block_x * BYTES_PER_THREAD
        if self._floor_us is not None:
            duration_us = self._floor_us + nbytes / (self._limits.memory_bytes_per_us * ATTAINABLE)
            return Estimate(duration_us, "extrapolated", REL_STD, kind)
        return Estimate(roofline_us(self._limits, 0.0, nbytes), "roofline", REL_STD, kind)
