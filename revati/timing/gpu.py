"""The part of a GPU description (``conf/gpu/*.yaml``) that bounds how fast kernels can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from revati.timing.estimate import FP8


class UnknownGpuError(ValueError):
    """The GPU has no timings; the message names those that have."""


class NoFp8Error(ValueError):
    """A product in FP8 on a GPU that has none."""


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Datasheet rates: bytes/µs and FLOP/µs are what the roofline divides by."""

    name: str
    sm_count: int
    memory_bytes_per_us: float
    bf16_flop_per_us: float
    fp8_flop_per_us: float | None  # None: it has no FP8
    nvlink_bytes_per_us: float
    l2_bytes: int
    power_modelled: bool  # what the power limit does to kernels is known, and not in their durations

    def flop_per_us(self, dtype: str) -> float:
        """The rate of products of such operands; what has no rate of its own is said to be as fast as bf16.

        Raises:
            NoFp8Error: FP8 on a GPU without it.
        """
        if dtype not in FP8:
            return self.bf16_flop_per_us
        if self.fp8_flop_per_us is None:
            raise NoFp8Error(f"{self.name} has no FP8")
        return self.fp8_flop_per_us


def load_limits(conf_gpu_dir: Path, gpu: str) -> GpuLimits:
    """Read ``<conf_gpu_dir>/<gpu>.yaml``.

    Raises:
        UnknownGpuError: there is no such description.
        KeyError: the description lacks a field that the roofline needs.
    """
    path = conf_gpu_dir / f"{gpu}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in conf_gpu_dir.glob("*.yaml"))
        raise UnknownGpuError(f"no GPU description {gpu!r}; known: {', '.join(known) or 'none'}")
    fields = yaml.safe_load(path.read_text())
    return GpuLimits(
        name=str(fields["name"]),
        sm_count=int(fields["sm_count"]),
        memory_bytes_per_us=float(fields["memory_bandwidth_gb_s"]) * 1e3,
        bf16_flop_per_us=float(fields["bf16_tflops"]) * 1e6,
        fp8_flop_per_us=None if fields["fp8_tflops"] is None else float(fields["fp8_tflops"]) * 1e6,
        nvlink_bytes_per_us=float(fields["nvlink_bandwidth_gb_s"]) * 1e3,
        l2_bytes=int(fields["attributes"]["L2CacheSize"]),
        power_modelled=fields["power"] is not None,
    )
