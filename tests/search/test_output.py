"""The output folder: columns, front, recommendation, launch command, report."""

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf

from revati.deployment.metrics import METRIC_COLUMNS
from revati.search import output
from revati.search.campaign import Campaign
from revati.search.columns import SHARE_COLUMNS, TRIAL_COLUMNS, trials_table
from revati.search.launch import launch_script
from revati.search.ledger import Ledger
from revati.search.objective import Objective
from revati.search.proposers import make_proposer
from revati.search.report import report_html
from revati.search.space import Choice, SearchSpace
from revati.search.trial import TrialOutput
from tests.search.problems import PROBLEM, objective, ok

SPACE = SearchSpace({"tensor_parallel_size": Choice((1, 2, 8)), "max_num_seqs": Choice((8, 16))})


def config() -> DictConfig:
    return OmegaConf.create(
        {
            "model": {"name": "tiny", "hub_id": "someone/tiny model"},
            "workload": {"name": "w", "arrivals": "poisson", "num_requests": 3, "request_rate_per_s": 2.0},
            "search": {"algorithm": "grid"},
            "search_space": "default",
            "engines": [],
            "seed": 0,
        }
    )


def sweep(folder: Path, chosen: Objective) -> str:
    with Ledger(folder / "ledger.jsonl") as ledger:
        course = Campaign(
            PROBLEM, chosen, make_proposer("grid", SPACE, chosen, 0, seed=0), ledger, num_trials=None
        )
        outputs = iter([ok(100.0, 20.0), ok(90.0, 30.0), ok(50.0, 5.0), TrialOutput("failed", "</script>")])
        while (trial := course.next()) is not None:
            course.finish(trial.trial_id, next(outputs))
        return output.write_results(folder, config(), PROBLEM, chosen, SPACE, ledger)


def test_trials_have_the_promised_columns_and_types(tmp_path: Path) -> None:
    sweep(tmp_path, objective())
    table = pq.read_table(tmp_path / "trials.parquet")
    assert table.column_names[: len(TRIAL_COLUMNS)] == list(TRIAL_COLUMNS)
    assert {*METRIC_COLUMNS, *SHARE_COLUMNS} <= set(table.column_names)
    rows = table.to_pylist()
    assert [row["status"] for row in rows].count("ok") == 3
    assert {row["status"] for row in rows} == {"ok", "failed", "infeasible"}
    assert {row["trial_id"]: row["pareto"] for row in rows if row["pareto"]} == {"0000": True, "0002": True}
    assert rows[0]["enforce_eager"] is True


def test_the_report_names_every_engine_and_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those in environments of their own."""
    info = tmp_path / "environment" / "lib" / "python3.11" / "site-packages" / "sglang-7.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 7\n")
    monkeypatch.setenv("REVATI_SGLANG_ENV", str(tmp_path / "environment"))
    monkeypatch.setenv("REVATI_ROUTERS_ENV", str(tmp_path / "nothing"))
    packages = output.versions(0)["packages"]
    assert (packages["sglang"], packages["sglang-router"]) == ("7", None)
    both = OmegaConf.merge(config(), {"engines": ["sglang", "vllm"]})
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        output.write_results(tmp_path, both, PROBLEM, objective(), SPACE, ledger)
    assert re.fullmatch(
        r"sglang 7, vllm (\d\S+|\(not installed here\))", page_data(tmp_path)["facts"]["Engine"]
    )


def test_a_table_of_no_trials_has_the_columns() -> None:
    assert trials_table([]).column_names[: len(TRIAL_COLUMNS)] == list(TRIAL_COLUMNS)


def test_the_front_is_a_table_for_spreadsheets(tmp_path: Path) -> None:
    sweep(tmp_path, objective())
    rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
    assert [row["trial_id"] for row in rows] == ["0000", "0002"]
    assert [row["recommended"] for row in rows] == ["True", "False"]


def test_the_recommended_command_runs(tmp_path: Path) -> None:
    summary = sweep(tmp_path, objective(ttft_ms_p90=10.0))
    assert "trial 0002" in summary
    assert "vllm serve 'someone/tiny model' --tensor-parallel-size 2" in summary
    launch = tmp_path / "recommended" / "launch.sh"
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$VLLM_ALLREDUCE_USE_SYMM_MEM"\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    run = subprocess.run(
        [launch, "--port", "1"], env={"PATH": f"{fake.parent}:/usr/bin:/bin"}, capture_output=True, check=True
    )
    assert run.stdout.decode().splitlines() == [
        "0", "serve", "someone/tiny model", "--tensor-parallel-size", "2", "--dtype", "bfloat16",
        "--enforce-eager", "--max-num-seqs", "8", "--port", "1",
    ]  # fmt: skip


def test_a_switched_off_flag_is_negated() -> None:
    spec = PROBLEM.spec({"enable_prefix_caching": False, "enforce_eager": False})
    script = launch_script(spec, "x", {})
    assert "--no-enable-prefix-caching" in script
    assert "--no-enforce-eager" in script


def test_nothing_is_recommended_when_no_trial_meets_the_slo(tmp_path: Path) -> None:
    sweep(tmp_path, objective())
    assert (tmp_path / "recommended" / "launch.sh").exists()
    summary = sweep_again(tmp_path, objective(ttft_ms_p90=1.0))
    assert "no trial meets the SLO (ttft_ms_p90, bound 1: kept by 0 of 3, best 5)" in summary
    assert [path.name for path in (tmp_path / "recommended").iterdir()] == ["README.md"]
    assert summary in (tmp_path / "recommended" / "README.md").read_text()
    assert page_data(tmp_path)["recommended"] is None
    assert {row["slo_met"] for row in csv.DictReader((tmp_path / "pareto.csv").open())} == {"False"}


def sweep_again(folder: Path, chosen: Objective) -> str:
    (folder / "ledger.jsonl").unlink()
    return sweep(folder, chosen)


def test_a_sweep_without_a_result_says_so(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        summary = output.write_results(tmp_path, config(), PROBLEM, objective(), SPACE, ledger)
    assert "no trial ran to its end" in summary
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == 0


def page_data(folder: Path) -> dict[str, Any]:
    page = (folder / "report.html").read_text()
    found = re.search(r"^const data = (\{.*\});$", page, re.MULTILINE)
    assert found
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_report_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    sweep(tmp_path, objective())
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|fetch\(", page)
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]
    assert page.count("</script>") == 1  # a trial's reason holds another one
    data = page_data(tmp_path)
    assert data["recommended"] == "0000"
    assert data["front"] == ["0000", "0002"]
    assert [row["reason"] for row in data["rows"]].count("</script>") == 1


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
def test_the_report_takes_what_is_not_a_number(strange: float) -> None:
    page = report_html(
        [{"trial_id": "0000", "status": "ok", "ttft_ms_p90": strange}],
        objective=objective(),
        knobs=[],
        front=[],
        recommended=None,
        script=None,
        title="t",
        facts={},
    )
    assert '"ttft_ms_p90": null' in page
