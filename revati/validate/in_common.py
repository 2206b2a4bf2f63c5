"""What the phases of a measured engine's process have in common, from the decode steps of a run's log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from revati.profile import sglang_host_fit
from revati.profile.host_in_common import of_decodes
from revati.profile.host_logs import Array
from revati.validate import turns

_PHASES = (
    ("schedule_begin_s", "schedule_end_s"),
    ("execute_begin_s", "execute_end_s"),
    ("execute_end_s", "sample_end_s"),
)


def of_run(folder: Path, description: Mapping[str, Any]) -> Array | None:
    """`correlations` of a run, ``description`` is its run.json; None if its log doesn't tell."""
    found = _vllm(folder) if description["engine"] == "vllm" else _sglang(folder, description)
    return found if found is not None and np.isfinite(found).all() else None


def _vllm(folder: Path) -> Array:
    log = pq.read_table(folder / "steps.parquet")
    columns = {name: np.asarray(log[name]) for name in log.column_names if name != "graph"}
    tokens, requests = columns["scheduled_tokens"], columns["scheduled_requests"]
    costs_us = (1e6 * (columns[end] - columns[begin]) for begin, end in _PHASES)
    return of_decodes(costs_us, requests, tokens > 0, tokens == requests)


def _sglang(folder: Path, description: Mapping[str, Any]) -> Array | None:
    log = turns.read(folder, description)
    return None if log is None else sglang_host_fit.together(log)
