"""One emulated deployment without a search, on a runner that answers from a formula."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from revati import emulate
from revati.deployment.metrics import METRIC_COLUMNS
from revati.search import cli
from tests.doubles import runner

RUNNER = "tests.doubles.runner"


def run(folder: Path, *arguments: str) -> int:
    cli.schemas.register()
    overrides = cli.rewrite(["+model=llama7b", "host.mode=free", "workload.num_requests=20", *arguments])
    config = cli.compose_config("emulate", overrides)
    emulate.check(config)
    return emulate.run(config, folder, overrides, runner=RUNNER)


def test_metrics_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "knobs.tensor_parallel_size=2") == 0
    out = capsys.readouterr().out
    assert "llama7b on 2 x h200, 20 requests" in out
    assert "TTFT p99" in out
    assert "8449 KV-cache blocks; GPU time: measured 75.0%, roofline 25.0%" in out
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert set(result["metrics"]) == set(METRIC_COLUMNS)
    assert pq.read_table(tmp_path / "requests" / "emulate.parquet").num_rows == 20
    assert (tmp_path / "config" / "config.yaml").exists()


def test_goodput_counts_by_the_request_slo(tmp_path: Path) -> None:
    goodputs = []
    for bound in (1e-6, 1e9):
        run(tmp_path, f"objective.request_slo.ttft_ms={bound}", "objective.request_slo.tpot_ms=null")
        goodputs.append(json.loads((tmp_path / "metrics.json").read_text())["metrics"]["goodput_req_per_s"])
    assert goodputs[0] == 0 < goodputs[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_closes_the_server(tmp_path: Path, number: signal.Signals) -> None:
    socket = tmp_path / "logs" / "socket"

    def interrupt() -> None:
        while not socket.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(tmp_path, f"knobs.max_num_batched_tokens={runner.SLOW}") == 130
    thread.join()
    assert not socket.exists()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (runner.TOO_BIG, "infeasible: No available memory for the cache blocks."),
        (runner.CRASHES, "failed: RuntimeError: engine core exploded"),
    ],
)
def test_what_does_not_run_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: int, message: str
) -> None:
    assert run(tmp_path, f"knobs.max_num_batched_tokens={tokens}") == 1
    assert capsys.readouterr().err.startswith(f"{message}; logs: ")
