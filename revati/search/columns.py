"""The columns of ``trials.parquet``: the one list of what is known of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from revati.deployment.metrics import METRIC_COLUMNS
from revati.timing.estimate import PROVENANCES

SHARE_COLUMNS = tuple(f"gpu_time_share_{provenance}" for provenance in PROVENANCES)
# Expected relative error of the GPU time; distinct launches that nobody measured.
UNCERTAINTY: dict[str, pa.DataType] = {"gpu_time_rel_std": pa.float64(), "unseen_kernels": pa.int64()}

_TRIAL: dict[str, pa.DataType] = {
    "trial_id": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "engine": pa.string(),
    "model": pa.string(),
    "gpu": pa.string(),
    "num_gpus": pa.int64(),
    "tensor_parallel_size": pa.int64(),
    "pipeline_parallel_size": pa.int64(),
    "replicas": pa.int64(),
    "routing": pa.string(),
    "max_num_seqs": pa.int64(),
    "max_num_batched_tokens": pa.int64(),
    "kv_cache_blocks": pa.int64(),
    "virtual_duration_s": pa.float64(),
    "wall_s": pa.float64(),
}
TRIAL_COLUMNS = tuple(_TRIAL)


def trials_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """One row per trial: the trial's columns, GPU time by provenance, metrics, SLO, other knobs searched."""
    rows = list(rows)
    types = dict(_TRIAL)
    types |= dict.fromkeys(SHARE_COLUMNS, pa.float64()) | UNCERTAINTY
    types |= {metric: pa.float64() for metric in METRIC_COLUMNS if metric not in types}
    types["slo_met"] = pa.bool_()
    for name in dict.fromkeys(name for row in rows for name in row):
        types.setdefault(name, _type_of([row.get(name) for row in rows]))
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})


def _type_of(values: list[Any]) -> pa.DataType:
    present = {type(value) for value in values if value is not None}
    if present <= {bool}:
        return pa.bool_()
    if present <= {int}:
        return pa.int64()
    return pa.float64() if present <= {int, float} else pa.string()
