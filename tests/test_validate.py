"""Validation: replaying measured runs, the errors, the table, the command line."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from revati.spec import DeploymentSpec, HostSpec
from revati.validate import (
    METRICS,
    Options,
    ValidationError,
    compare,
    format_table,
    main,
    noise_pct,
    read_runs,
    validate,
    write_csv,
)
from revati.workload import Workload

MEASURED_RUN = Path(__file__).parent / "data" / "measured_run"
HOST = HostSpec("h200_xeon")


def add_run(folder: Path, name: str, **changes: Any) -> Path:
    shutil.copytree(MEASURED_RUN, folder / name)
    description = json.loads((MEASURED_RUN / "run.json").read_text()) | changes
    (folder / name / "run.json").write_text(json.dumps(description))
    return folder / name


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    folder = tmp_path / "measured"
    add_run(folder, "a")
    add_run(folder, "a_rep2")
    add_run(folder, "b_pp2", pipeline_parallel_size=2, num_gpus=2)
    table = pq.read_table(folder / "a_rep2" / "requests.parquet")
    ttft = [2 * value for value in table["ttft_s"].to_pylist()]
    pq.write_table(
        table.set_column(table.column_names.index("ttft_s"), "ttft_s", [ttft]),
        folder / "a_rep2" / "requests.parquet",
    )
    return folder


class Echo:
    """Answers a replay with the measured requests themselves, slower by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.specs: list[DeploymentSpec] = []

    def __call__(self, spec: DeploymentSpec, workload: Workload, out: Path) -> Any:
        self.specs.append(spec)
        table = pq.read_table(MEASURED_RUN / "requests.parquet")
        assert workload.arrival_s.tolist() == table["arrival_s"].to_pylist()
        for name in ("ttft_s", "e2e_s"):
            values = [self.factor * value for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, [values])
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out / "requests.parquet")
        return SimpleNamespace(
            status="ok",
            reason="",
            requests_path=out / "requests.parquet",
            kv_cache_blocks=14874,
            wall_s=1.0,
        )


def test_errors_are_relative_to_the_measurement(measured: Path, tmp_path: Path) -> None:
    run = read_runs(measured, "a")[0]
    comparison = compare(run, Echo(1.1), HOST, tmp_path)
    assert comparison.error_pct("ttft_ms_p50") == pytest.approx(10)
    assert comparison.error_pct("e2e_ms_mean") == pytest.approx(10)
    assert comparison.error_pct("kv_cache_blocks") == pytest.approx(100 * (14874 / 14727 - 1))
    assert comparison.error_pct("itl_ms_p50") == pytest.approx(0)


def test_the_recorded_settings_are_replayed(measured: Path, tmp_path: Path) -> None:
    add_run(
        measured, "tp2", tensor_parallel_size=2, engine_args={"tensor_parallel_size": 2, "block_size": 32}
    )
    echo = Echo()
    compare(read_runs(measured, "tp2")[0], echo, HOST, tmp_path)
    spec = echo.specs[0]
    assert spec.tensor_parallel_size == 2
    assert spec.engine_args == {"block_size": 32, "max_num_seqs": 1024, "max_num_batched_tokens": 8192}
    assert spec.model.hidden_size == 4096
    assert spec.host == HOST


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2"),
        ({"engine": "sglang"}, "engine sglang"),
        ({"model": "gpt-5"}, "no such shape in conf/model; known: .*llama13b"),
    ],
)
def test_what_cannot_be_emulated_is_skipped_with_its_reason(
    measured: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    add_run(measured, "odd", **changes)
    comparison = compare(read_runs(measured, "odd")[0], Echo(), HOST, tmp_path)
    assert re.search(reason, comparison.skipped)
    assert not comparison.emulated


def test_a_failed_emulation_is_shown_not_dropped(measured: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        return SimpleNamespace(status="failed", reason="out of\nmemory")

    comparison = compare(read_runs(measured, "a")[0], fail, HOST, tmp_path)
    assert comparison.skipped == "failed: out of memory"


def test_csv_has_every_metric_and_the_skipped(measured: Path, tmp_path: Path) -> None:
    options = Options(measured, host=HOST, out=tmp_path / "out", jobs=2)
    comparisons = validate(options, Echo())
    assert [c.run.name for c in comparisons] == ["a", "a_rep2", "b_pp2"]
    with (tmp_path / "out" / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "metric", "measured", "emulated", "error_pct"]
    assert [row["metric"] for row in rows if row["run"] == "a"] == list(METRICS)
    assert float(next(r for r in rows if r["metric"] == "ttft_ms_p50")["error_pct"]) == pytest.approx(0)
    skipped = [row for row in rows if row["run"] == "b_pp2"]
    assert len(skipped) == 1
    assert skipped[0]["metric"].startswith("skipped: pipeline_parallel_size=2")


def test_table_shows_errors_noise_and_means(measured: Path, tmp_path: Path) -> None:
    runs = read_runs(measured)
    comparisons = [compare(run, Echo(), HOST, tmp_path) for run in runs]
    lines = format_table(comparisons, runs).splitlines()
    assert lines[1].split()[0] == "a"
    assert "+0.0" in lines[1]
    assert "-50.0" in lines[2], "the repeat's measured TTFT is twice the emulated one"
    assert lines[3].split()[:3] == ["noise", "of", "repeats"]
    assert "±33.3" in lines[3]
    assert "skipped: pipeline_parallel_size=2" in lines[4]
    assert lines[5].startswith("mean |error|, 1 GPU")
    assert "25.0" in lines[5]


def test_noise_needs_repeats(measured: Path) -> None:
    runs = read_runs(measured)
    assert noise_pct(runs[:2], "ttft_ms_p50") == pytest.approx(100 / 3)
    assert noise_pct(runs[2:], "ttft_ms_p50") != noise_pct(runs[2:], "ttft_ms_p50"), "NaN"


def test_csv_of_nothing_has_a_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "deep" / "validation.csv")
    assert (tmp_path / "deep" / "validation.csv").read_text().startswith("run,metric,measured")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one folder"),
        (["x", "y"], "got 2"),
        (["x", "host=mac"], "host=mac: accepted: .*h200_xeon"),
        (["x", "mode=fast"], "accepted: table, measured, free"),
        (["x", "jobs=0"], "integer >= 1"),
        (["x", "run=a"], "unknown option 'run'; accepted: runs, host"),
    ],
)
def test_wrong_arguments_teach(arguments: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options.parse(arguments)


def test_wrong_folder_exits_with_status_2_and_one_line(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(measured), "runs=c*"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "is no folder" in lines[0]
    assert "a, a_rep2, b_pp2" in lines[1]
