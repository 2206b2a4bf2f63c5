"""Metrics: known answers by hand, and the summaries of measured runs."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.deployment.metrics import METRIC_COLUMNS, Slo, summarize, token_gaps_s

MEASURED_RUN = Path(__file__).parent / "data" / "measured_run"

# Two requests by hand: tokens at 10, 30, 60 ms after arrival, and a single token at 20 ms.
BY_HAND = {
    "arrival_s": [0.0, 0.1],
    "prompt_tokens": [30, 10],
    "cached_tokens": [16, 0],
    "output_tokens": [3, 1],
    "ttft_s": [0.010, 0.020],
    "e2e_s": [0.060, 0.020],
    "token_times_us": [[10_000, 30_000, 60_000], [20_000]],
}


def test_known_answers() -> None:
    metrics = summarize(BY_HAND, num_gpus=2)
    assert tuple(metrics) == METRIC_COLUMNS
    assert metrics["virtual_duration_s"] == pytest.approx(0.120)
    assert metrics["output_throughput_tok_per_s"] == pytest.approx(4 / 0.12)
    assert metrics["output_throughput_tok_per_s_per_gpu"] == pytest.approx(2 / 0.12)
    assert metrics["request_throughput_req_per_s"] == pytest.approx(2 / 0.12)
    assert metrics["ttft_ms_p50"] == pytest.approx(15.0)
    assert metrics["ttft_ms_p90"] == pytest.approx(19.0)
    assert metrics["tpot_ms_mean"] == pytest.approx(25.0), "the one-token request has no TPOT"
    assert metrics["itl_ms_mean"] == pytest.approx(25.0)
    assert metrics["itl_ms_p99"] == pytest.approx(29.9)
    assert metrics["e2e_ms_mean"] == pytest.approx(40.0)
    assert metrics["prefix_cache_hit_rate"] == pytest.approx(16 / 40)


def test_an_unknown_hit_rate_is_no_number() -> None:
    silent = {**BY_HAND, "cached_tokens": [16, None]}
    measured = {name: values for name, values in BY_HAND.items() if name != "cached_tokens"}
    for requests in (silent, pa.table(silent), measured):
        assert math.isnan(summarize(requests)["prefix_cache_hit_rate"])


def test_arrow_table_equals_mapping_also_in_chunks() -> None:
    table = pa.table(BY_HAND)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(0, 0), table.slice(1)])
    assert summarize(chunked) == summarize(table) == summarize(BY_HAND)


def test_gaps_do_not_cross_requests() -> None:
    gaps = token_gaps_s({"token_times_us": [[], [1_000, 5_000], [], [2_000], [3_000, 3_500]]})
    assert gaps == pytest.approx([0.004, 0.0005])


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (None, 2),
        (Slo(), 2),
        (Slo(ttft_ms=10), 1),
        (Slo(ttft_ms=9), 0),
        (Slo(tpot_ms=24), 1),
        (Slo(tpot_ms=25, e2e_ms=59), 1),
    ],
)
def test_goodput_counts_requests_within_the_slo(slo: Slo | None, good: int) -> None:
    assert summarize(BY_HAND, slo=slo)["goodput_req_per_s"] == pytest.approx(good / 0.12)


def test_single_tokens_have_no_tpot() -> None:
    metrics = summarize(
        {"arrival_s": [0.0], "output_tokens": [1], "ttft_s": [0.1], "e2e_s": [0.1], "token_times_us": [[1e5]]}
    )
    assert math.isnan(metrics["tpot_ms_mean"])
    assert math.isnan(metrics["itl_ms_p99"])
    assert metrics["ttft_ms_p99"] == pytest.approx(100.0)


def test_errors_teach() -> None:
    with pytest.raises(ValueError, match="no completed request"):
        summarize({name: [] for name in BY_HAND})
    with pytest.raises(ValueError, match="lacks the column 'ttft_s'; it has arrival_s"):
        summarize({name: v for name, v in BY_HAND.items() if name != "ttft_s"})


def measured_runs() -> list[Path]:
    """The committed synthetic run, and real ones where REVATI_GROUND_TRUTH names a folder of them."""
    extra = os.environ.get("REVATI_GROUND_TRUTH")
    real = sorted(path.parent for path in Path(extra).glob("*/run.json")) if extra else []
    return [MEASURED_RUN, *real]


@pytest.mark.parametrize("run", measured_runs(), ids=lambda path: path.name)
def test_reproduces_the_summary_of_a_measured_run(run: Path) -> None:
    description = json.loads((run / "run.json").read_text())
    metrics = summarize(pq.read_table(run / "requests.parquet"), num_gpus=description["num_gpus"])
    measured = description["measured"]
    for name in metrics.keys() & measured.keys():
        # The recorded duration includes the generator's last 0.3 ms; latencies agree exactly.
        tolerance = 1e-4 if "throughput" in name else 1e-9
        assert metrics[name] == pytest.approx(measured[name], rel=tolerance), name
    assert len(metrics.keys() & measured.keys()) >= 14
    assert np.isclose(metrics["virtual_duration_s"], measured["duration_s"], rtol=1e-4)
