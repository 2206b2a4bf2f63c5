"""Serving metrics of a request table, defined as the serving benchmarks of vLLM and SGLang define them.

TTFT, ITL and E2E count from a request's scheduled arrival; TPOT is (E2E - TTFT) / (output tokens - 1),
so requests with one output token have no TPOT. ITL pools the gaps between consecutive tokens of all
requests. Percentiles interpolate linearly over requests (ITL: over gaps).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FloatArray = npt.NDArray[np.float64]
Requests: TypeAlias = pa.Table | Mapping[str, Any]

PERCENTILES = (50, 90, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2e")
METRIC_COLUMNS = (
    "output_throughput_tok_per_s",
    "output_throughput_tok_per_s_per_gpu",
    "request_throughput_req_per_s",
    "goodput_req_per_s",
    *(f"{latency}_ms_{stat}" for latency in LATENCIES for stat in ("mean", "p50", "p90", "p99")),
    "prefix_cache_hit_rate",
    "virtual_duration_s",
)


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper bounds that a request must keep to count as good; None bounds nothing."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def good(self, ttft_s: FloatArray, tpot_s: FloatArray, e2e_s: FloatArray) -> npt.NDArray[np.bool_]:
        """Return for each request whether it keeps every bound; a request without TPOT keeps that one."""
        good = np.ones(len(ttft_s), np.bool_)
        bounds = ((self.ttft_ms, ttft_s), (self.tpot_ms, tpot_s), (self.e2e_ms, e2e_s))
        for bound_ms, values_s in bounds:
            if bound_ms is not None:
                good &= ~(values_s * 1e3 > bound_ms)
        return good


def summarize(requests: Requests, num_gpus: int = 1, slo: Slo | None = None) -> dict[str, float]:
    """Return the metrics named in `METRIC_COLUMNS` for completed requests.

    Needs the columns arrival_s, output_tokens, ttft_s, e2e_s (seconds) and token_times_us (a list of
    µs from arrival a request). The duration runs from t = 0 to the last completion. Without an SLO
    every request is good. A latency that no request has (TPOT and ITL when all outputs are one token
    long) is NaN. The hit rate is the share of all prompt tokens that engines found in their prefix
    caches (columns prompt_tokens and cached_tokens); NaN where that is not known of every request.

    Raises ValueError if there is no request or a column is missing.
    """
    arrival_s, ttft_s, e2e_s = (_column(requests, name) for name in ("arrival_s", "ttft_s", "e2e_s"))
    output_tokens = _column(requests, "output_tokens")
    if not len(arrival_s):
        raise ValueError("no completed request: there is nothing to summarize")
    duration_s = float(np.max(arrival_s + e2e_s))
    gaps = output_tokens - 1
    tpot_s = np.full(len(gaps), np.nan)
    np.divide(e2e_s - ttft_s, gaps, out=tpot_s, where=gaps > 0)
    latencies_s = {
        "ttft": ttft_s,
        "tpot": tpot_s[gaps > 0],
        "itl": token_gaps_s(requests),
        "e2e": e2e_s,
    }
    good = (slo or Slo()).good(ttft_s, tpot_s, e2e_s)
    throughput = float(output_tokens.sum()) / duration_s
    metrics = {
        "output_throughput_tok_per_s": throughput,
        "output_throughput_tok_per_s_per_gpu": throughput / num_gpus,
        "request_throughput_req_per_s": len(arrival_s) / duration_s,
        "goodput_req_per_s": float(good.sum()) / duration_s,
    }
    for latency in LATENCIES:
        metrics |= _latency_metrics(latency, latencies_s[latency] * 1e3)
    metrics["prefix_cache_hit_rate"] = prefix_cache_hit_rate(requests)
    metrics["virtual_duration_s"] = duration_s
    return metrics


def prefix_cache_hit_rate(requests: Requests) -> float:
    """Return the share of prompt tokens found in prefix caches, from 0 to 1, NaN if it is unknown."""
    present = requests.column_names if isinstance(requests, pa.Table) else list(requests)
    if "cached_tokens" not in present:
        return float("nan")
    return float(_column(requests, "cached_tokens").sum() / _column(requests, "prompt_tokens").sum())


def token_gaps_s(requests: Requests) -> FloatArray:
    """Return the times between consecutive tokens of each request, in seconds, all requests pooled."""
    flat_us, lengths = _token_times(requests)
    if not len(flat_us):
        return np.empty(0)
    gaps = np.diff(flat_us)
    first_of_request = np.cumsum(lengths)[:-1]
    keep = np.ones(len(gaps), np.bool_)
    keep[first_of_request[(first_of_request > 0) & (first_of_request < len(flat_us))] - 1] = False
    return gaps[keep] / 1e6


def _latency_metrics(latency: str, values_ms: FloatArray) -> dict[str, float]:
    if not len(values_ms):
        return {f"{latency}_ms_{stat}": float("nan") for stat in ("mean", "p50", "p90", "p99")}
    percentiles = np.percentile(values_ms, PERCENTILES)
    return {
        f"{latency}_ms_mean": float(values_ms.mean()),
        **{f"{latency}_ms_p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
    }


def _column(requests: Requests, name: str) -> FloatArray:
    values = _values(requests, name)
    if isinstance(values, pa.ChunkedArray):
        values = values.to_numpy()
    return np.asarray(values, np.float64)


def _token_times(requests: Requests) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return all token times in µs, request after request, and the number of tokens of each."""
    values = _values(requests, "token_times_us")
    if isinstance(values, pa.ChunkedArray):
        chunks = [chunk for chunk in values.chunks if len(chunk)]
        if not chunks:
            return np.empty(0), np.empty(0, np.int64)
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
        lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
        return flat.astype(np.float64), lengths.astype(np.int64)
    rows = [np.asarray(row, np.float64) for row in values]
    return np.concatenate([np.empty(0), *rows]), np.array([len(row) for row in rows], np.int64)


def _values(requests: Requests, name: str) -> Any:
    present = requests.column_names if isinstance(requests, pa.Table) else list(requests)
    if name not in present:
        raise ValueError(f"the request table lacks the column {name!r}; it has {', '.join(present)}")
    return requests[name]
