"""What an emulated scheduler adds to what SGLang tells of its state, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revati.timing.usage import Usage

_LAUNCHES = "revati_launches"


def add_usage(state: dict[str, Any], usage: Usage) -> None:
    """Put the launches since the last flush of the cache into an internal state."""
    state[_LAUNCHES] = usage.table().to_pylist()


def write_usage(state: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Write ``kernels.parquet``; returns what a trial's row says of the timings.

    Raises:
        RuntimeError: whoever tells of its state is not emulated.
    """
    if _LAUNCHES not in state:
        raise RuntimeError("SGLang runs without Revati's plug-in; its log says why")
    usage = Usage.of_tables([pa.Table.from_pylist(state[_LAUNCHES])])
    pq.write_table(usage.table(), folder / "kernels.parquet")
    return usage.columns()
