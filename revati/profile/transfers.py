"""Copies between host and device, within the device, and fills: the GPU's time, by size."""

from __future__ import annotations

import torch

from revati.profile.parts import Row, summary
from revati.profile.recorder import RecordingError, record

SIZES = tuple(4 * 4**i for i in range(14))  # 4 B … 256 MiB
REPEATS = 7


def measure() -> list[Row]:
    rows: list[Row] = []
    for nbytes in SIZES:
        pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        device = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        other = torch.empty_like(device)

        def work(
            pinned: torch.Tensor = pinned, device: torch.Tensor = device, other: torch.Tensor = other
        ) -> None:
            for _ in range(REPEATS):
                device.copy_(pinned, non_blocking=True)
                pinned.copy_(device, non_blocking=True)
                other.copy_(device)
                torch.cuda.synchronize()

        events = record(work)
        for direction, name in (("h2d", "HtoD"), ("d2h", "DtoH"), ("d2d", "DtoD")):
            found = [e.duration_us for e in events if e.category == "gpu_memcpy" and name in e.name]
            if len(found) != REPEATS:
                raise RecordingError(f"{direction} of {nbytes} bytes: {len(found)} of {REPEATS} recorded")
            rows.append(_row("copy", direction, nbytes, found))
        rows.append(_row("memset", "memset", nbytes, _memsets(device)))
    return rows


def _memsets(device: torch.Tensor) -> list[float]:
    """cudaMemsetAsync itself; torch's fills are kernels."""
    import cupy

    def work() -> None:
        for _ in range(REPEATS):
            cupy.cuda.runtime.memsetAsync(device.data_ptr(), 0, device.numel(), 0)
        torch.cuda.synchronize()

    found = [e.duration_us for e in record(work) if e.category == "gpu_memset"]
    if len(found) != REPEATS:
        raise RecordingError(f"memset: {len(found)} of {REPEATS} recorded")
    return found


def _row(kind: str, direction: str, nbytes: int, found: list[float]) -> Row:
    return {
        "kind": kind,
        "kernel": kind,
        "variant": direction,
        "nbytes": nbytes,
        "method": "cupti",
        **summary(found[1:]),
    }
