"""What a trial leaves: its table of requests, and whether its timings are good enough."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from revati.deployment.inprocess import RequestRecord
from revati.timing.estimate import PROVENANCES
from revati.workload import Workload


def too_weak(required: str | None, shares: dict[str, float]) -> str:
    """Why the timings are too weak for ``timing.require``; empty if they are not."""
    if required is None:
        return ""
    weaker = PROVENANCES[PROVENANCES.index(required) + 1 :]
    found = [f"{100 * shares[name]:.1f} % {name}" for name in weaker if shares[name] > 0]
    return f"timing.require={required}: GPU time is {', '.join(found)}" if found else ""


def requests_table(records: list[RequestRecord], workload: Workload) -> pa.Table:
    """One row a request, in the workload's order; see `RequestRecord`."""
    first = np.array([record.token_times_s[0] for record in records])
    last = np.array([record.token_times_s[-1] for record in records])
    arrival = np.array([record.arrival_s for record in records])
    intervals = np.maximum(1, np.array([len(record.token_times_s) for record in records]) - 1)
    engine = ("queued_s", "scheduled_s", "engine_first_token_s", "engine_last_token_s")
    return pa.table(
        {
            "arrival_s": arrival,
            "submitted_s": [record.submitted_s for record in records],
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
            "ttft_s": first - arrival,
            "e2e_s": last - arrival,
            "tpot_s": (last - first) / intervals,
            **{name: [getattr(record, name) for record in records] for name in engine},
            "cached_tokens": pa.array([record.cached_tokens for record in records], pa.int64()),
            **workload.sharing_columns(),
            "token_times_us": [
                np.round((np.array(record.token_times_s) - record.arrival_s) * 1e6).astype(np.int64)
                for record in records
            ],
        }
    )
