"""Kernel timing: ``KernelTimer`` answers durations with their provenance."""

from revati.timing.estimate import PROVENANCES, Estimate, Provenance, RankShape
from revati.timing.gpu import UnknownGpuError
from revati.timing.timer import KernelTimer

__all__ = ["PROVENANCES", "Estimate", "KernelTimer", "Provenance", "RankShape", "UnknownGpuError"]
