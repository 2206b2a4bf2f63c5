"""Which metrics are compared, and how far off each of them may be."""

from __future__ import annotations

from dataclasses import dataclass

from revati.deployment.metrics import METRIC_COLUMNS

KV_METRIC = "kv_cache_blocks"
# Goodput needs an SLO that measured runs don't have; per-GPU throughput has the error of throughput.
METRICS = (
    *(name for name in METRIC_COLUMNS if "goodput" not in name and not name.endswith("_per_gpu")),
    KV_METRIC,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the summary.

    `mean_limit_pct` bounds the mean of absolute errors over all cases, `worst_limit_pct` each of them
    (None: unbounded). `lower_is_better` tells how configurations are ranked by it.
    """

    metric: str
    title: str
    mean_limit_pct: float
    worst_limit_pct: float | None = None
    lower_is_better: bool = True


COLUMNS = (
    Column("output_throughput_tok_per_s", "tok/s", 3, lower_is_better=False),
    Column("tpot_ms_p50", "TPOT p50", 4, 10),
    Column("tpot_ms_p99", "TPOT p99", 12),
    Column("e2e_ms_p50", "E2E p50", 4, 10),
    Column("e2e_ms_p99", "E2E p99", 12),
    Column("ttft_ms_p50", "TTFT p50", 7, 15),
    Column("ttft_ms_p99", "TTFT p99", 12),
    Column(KV_METRIC, "KV blocks", 0.5, lower_is_better=False),
)


def is_tail(metric: str) -> bool:
    """Whether one pause of the load generator would decide it."""
    return metric.endswith(("_p90", "_p99", "_mean"))
