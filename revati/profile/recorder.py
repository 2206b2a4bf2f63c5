"""What ran on the GPU, from CUPTI through torch.profiler: names, launches and durations."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

GPU_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
# A copy on the GPU; graphs have a kernel for short ones.
MARKS = ("Memcpy DtoD", "memcpy32_post")
SPIN_CYCLES_PER_US = 1900
FLUSH_BYTES = 160 * 2**20


class RecordingError(RuntimeError):
    """A recording does not hold what was launched; it must not be used."""


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """One kernel, copy or fill; times in µs on the GPU's clock."""

    category: str
    name: str
    start_us: float
    duration_us: float
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    nbytes: int
    stream: int
    correlation: int  # equal for all kernels of one graph launch

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


def record(work: Callable[[], None]) -> list[GpuEvent]:
    """Run ``work`` and return what the GPU did for it, by start time."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recording:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    return sorted(
        (_event(e) for e in events if e.get("cat") in GPU_CATEGORIES), key=lambda event: event.start_us
    )


def _event(raw: dict[str, Any]) -> GpuEvent:
    args = raw["args"]
    grid = args.get("grid") or (0, 0, 0)
    block = args.get("block") or (0, 0, 0)
    return GpuEvent(
        category=raw["cat"],
        name=raw["name"],
        start_us=float(raw["ts"]),
        duration_us=float(raw["dur"]),
        grid=(int(grid[0]), int(grid[1]), int(grid[2])),
        block=(int(block[0]), int(block[1]), int(block[2])),
        shared_bytes=int(args.get("shared memory") or 0),
        nbytes=int(args.get("bytes") or 0),
        stream=int(args.get("stream") or 0),
        correlation=int(args.get("correlation") or 0),
    )


@cache
def _cold_data() -> torch.Tensor:
    return torch.ones(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")


def between_calls(rest_us: float = 0.0) -> None:
    """End a measured call, rest, and fill L2 with other, clean data, as the rest of a layer would.

    The flush also pushes out the measured kernel's instructions: a kernel repeated back to back starts up
    to 2 µs faster than the same kernel once per layer. The rest keeps the clock up: long runs of large
    GEMMs alone lower it.
    """
    data = _cold_data()
    data[:1].copy_(data[1:2])
    if rest_us > 0:
        torch.cuda._sleep(int(rest_us * SPIN_CYCLES_PER_US))
    data.amax()


def after_marks(events: list[GpuEvent], expected: int) -> list[list[GpuEvent]]:
    """What ran from each device-to-device copy to the next one, without them.

    Raises:
        RecordingError: the recording holds another number of such marks than was launched.
    """
    groups: list[list[GpuEvent]] = []
    for event in events:
        if event.name.startswith(MARKS):
            groups.append([])
        elif groups:
            groups[-1].append(event)
    if len(groups) != expected:
        raise RecordingError(f"expected {expected} marks, the recording has {len(groups)}")
    return groups


def split_at_marks(events: list[GpuEvent], expected: int) -> list[list[GpuEvent]]:
    """The kernels of each measured call.

    A call stands between two device-to-device copies: the one that writes its input and the one that
    ``between_calls`` begins with.

    Raises:
        RecordingError: the recording holds another number of marks than was launched.
    """
    return after_marks(events, 2 * expected)[0::2]


def span_us(group: list[GpuEvent]) -> float:
    """From the first kernel's start to the last one's end."""
    return max(e.end_us for e in group) - group[0].start_us
