"""Fits what attention saves where contexts begin alike; see `revati.timing.sharing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from revati.timing.gpu import GpuLimits
from revati.timing.sharing import Beginnings, SharingFit, token_bytes

START = (0.3, 0.1, 2.0, 1.2)


def fit_sharing(rows: Sequence[Mapping[str, Any]], limits: GpuLimits) -> SharingFit:
    """From rows of kind ``attention_sharing``: requests in turn belong to ``n`` groups, or to none."""
    alone = {_batch(row): row["median_us"] for row in rows if not row["n"]}
    sharing = [row for row in rows if row["n"]]
    alone_us = np.array([alone[_batch(row)] for row in sharing])
    ratio = np.array([row["median_us"] for row in sharing]) / alone_us
    heads = np.array([row["num_kv_heads"] for row in sharing])
    usual_us = np.array([alone_us[heads == one].mean() for one in heads])
    weight = np.sqrt(alone_us / usual_us)  # of a model's batches the long ones matter
    batches = [_beginnings(row) for row in sharing]

    def expected(values: Sequence[float]) -> NDArray[np.float64]:
        one = SharingFit(*values)
        return np.array(
            [
                1.0
                - one.saved(
                    batch,
                    np.array(row["context_lens"]),
                    max(row["query_lens"]) == 1,
                    limits.sm_count / row["num_kv_heads"],
                    limits.l2_bytes / token_bytes(row["num_kv_heads"], row["head_dim"], row["dtype"]),
                )
                for row, batch in zip(sharing, batches, strict=True)
            ]
        )

    found = least_squares(lambda values: weight * (expected(values) - ratio), START, bounds=(0.0, np.inf)).x
    rel_std = float(np.sqrt(np.mean((weight * (expected(found) / ratio - 1.0)) ** 2)))
    return replace(SharingFit(*map(float, found)), rel_std=rel_std)


def _batch(row: Mapping[str, Any]) -> tuple[object, ...]:
    return row["num_q_heads"], row["num_kv_heads"], tuple(row["query_lens"]), tuple(row["context_lens"])


def _beginnings(row: Mapping[str, Any]) -> Beginnings:
    requests = len(row["context_lens"])
    return Beginnings([at % row["n"] for at in range(requests)], [row["k"]] * requests)
