"""What the phases of a measured engine's process have in common, from the decode steps of a run's log."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from revati.profile import sglang_host_fit
from revati.profile.host_in_common import Array, of_decodes
from revati.validate import turns

_PHASES = (
    ("schedule_begin_s", "schedule_end_s"),
    ("execute_begin_s", "execute_end_s"),
    ("execute_end_s", "sample_end_s"),
)


@cache  # every table of all machines but one asks for it
def of_run(folder: Path, engine: str, stages: int) -> Array | None:
    """`correlations` of a run; None if its log doesn't tell."""
    found = _vllm(folder) if engine == "vllm" else _sglang(folder, stages)
    return found if found is not None and np.isfinite(found).all() else None


def _vllm(folder: Path) -> Array:
    log = pq.read_table(folder / "steps.parquet")
    columns = {name: np.asarray(log[name]) for name in log.column_names if name != "graph"}
    tokens, requests = columns["scheduled_tokens"], columns["scheduled_requests"]
    costs_us = (1e6 * (columns[end] - columns[begin]) for begin, end in _PHASES)
    return of_decodes(costs_us, requests, tokens > 0, tokens == requests)


def _sglang(folder: Path, stages: int) -> Array | None:
    log = turns.read(folder, {"pipeline_parallel_size": stages})
    return None if log is None else sglang_host_fit.together(log)
