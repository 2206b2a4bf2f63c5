"""Resumable output: a file per unit of work, merged into one file per family."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.profile.gpu_state import query_gpu
from revati.timing import db
from revati.timing.schema import TIMED, rows_to_table

Row = dict[str, Any]


def summary(durations_us: list[float]) -> Row:
    """The measurement columns of a row: count, median and the 10th and 90th percentile."""
    ordered = sorted(durations_us)
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "median_us": statistics.median(ordered),
        "p10_us": ordered[round(0.1 * last)],
        "p90_us": ordered[round(0.9 * last)],
    }


def timed_gap(tokens: int, gaps_us: list[float]) -> Row:
    """A row of the gaps between the kernels of a graph that was timed as a whole."""
    common = {"kind": "gap", "kernel": "graph", "variant": TIMED, "num_tokens": tokens, "method": "events"}
    return common | summary(gaps_us)


def libraries() -> str:
    import torch

    found = [f"cuda={torch.version.cuda}", f"torch={torch.__version__}"]
    for package in ("vllm", "triton", "nvidia-cublas", "nvidia-nccl-cu13"):
        try:
            found.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            continue
    return " ".join(found)


@dataclass(slots=True)
class Parts:
    """Writes ``<out>/gpu=<name>/parts/<family>.<unit>.parquet`` and merges them."""

    folder: Path  # <out>/gpu=<name>
    provenance: Row = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, gpu: str) -> Parts:
        folder = out / f"gpu={gpu}"
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.parquet"):  # measured in earlier sessions: merging keeps it
            if not list((folder / "parts").glob(f"{path.stem}.*.parquet")):
                shutil.copyfile(path, folder / "parts" / f"{path.stem}.before.parquet")
        return cls(
            folder,
            {
                "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
                "driver": query_gpu("driver_version") or "unknown",
                "libraries": libraries(),
            },
        )

    def path(self, family: str, unit: str) -> Path:
        return self.folder / "parts" / f"{family}.{unit}.parquet"

    def run(self, family: str, unit: str, measure: Callable[[], list[Row]]) -> int:
        """Measure a unit unless it is there; returns the rows added."""
        path = self.path(family, unit)
        if path.exists():
            return 0
        rows = measure()
        if rows:
            db.write(rows_to_table([self.provenance | row for row in rows]), path)
        return len(rows)

    def merge(self, family: str) -> int:
        """Join a family's parts into one file; what was measured twice is there twice."""
        parts = sorted((self.folder / "parts").glob(f"{family}.*.parquet"))
        if not parts:
            return 0
        table = pa.concat_tables([pq.read_table(p, partitioning=None) for p in parts]).unify_dictionaries()
        db.write(table, self.folder / f"{family}.parquet")
        return int(table.num_rows)
