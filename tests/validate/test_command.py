"""The command: emulating, comparing, writing; its arguments."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from revati.spec import DeploymentSpec, HostSpec
from revati.validate.__main__ import main, predict, validate
from revati.validate.options import OTHERS, Options
from revati.validate.predictions import Prediction, emulate_case, read_csv, write_csv
from revati.validate.runs import ValidationError, read_cases
from revati.virtual_time.host_table import HostTable
from revati.workload import Workload

from .conftest import ECHOED_BLOCKS, AddRun, Echo
from .step_logs import write_log

HOST = HostSpec("h200_xeon")


@pytest.fixture
def options(measured: Path, tmp_path: Path) -> Options:
    return Options((measured,), host=HOST, jobs=2, out=tmp_path / "out", baselines=tmp_path / "predictions")


def rows_of(options: Options) -> list[dict[str, str]]:
    with (options.out / "validation.csv").open() as file:
        return list(csv.DictReader(file))


def test_errors_are_relative_to_the_measurement(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    add_run("a")
    validate(options, read_cases([measured]), echo(1.1))
    errors = {row["metric"]: float(row["error_pct"]) for row in rows_of(options)}
    assert errors["ttft_ms_p50"] == pytest.approx(10)
    assert errors["e2e_ms_p99"] == pytest.approx(10)
    assert errors["itl_ms_p50"] == pytest.approx(0)
    assert errors["kv_cache_blocks"] == pytest.approx(100 * (ECHOED_BLOCKS / 14727 - 1), rel=1e-4)


def test_the_summary_has_noise_spread_and_baselines_beside_the_errors(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    for name, factor in (("a", 1.0), ("a_rep2", 1.2), ("b", 0.5)):
        add_run(name, factor)
    (measured / "manifest.yaml").write_text("dev: [b]\n")
    assert options.baselines
    write_csv({"a": Prediction({"ttft_ms_p50": 0.0})}, options.baselines / "naive.csv")
    validate(options, read_cases([measured]), echo(1.1))
    lines = (options.out / "SUMMARY.md").read_text().splitlines()
    cells: dict[str, list[str]] = {}
    for line in lines:
        if "|" in line:
            title, *values = (cell.strip() for cell in line.split("|")[1:-1])
            cells.setdefault(title, values)  # the emulation's errors come first
    ttft = cells["error %"].index("TTFT p50")
    assert cells["a"][ttft] == "+0.0 ±18.3", "1.1 against the median of 1.0 and 1.2"
    assert cells["b *dev*"][ttft] == "+120.0"
    assert cells["**emulation: mean of absolute errors** (2 cases)"][ttft] == "60.0"
    assert cells["held-out cases (1 cases)"][ttft] == "0.0"
    assert cells["inside the repeats' spread"][ttft] == "1 of 1"
    assert cells["inside the repeats' spread"][cells["error %"].index("KV blocks")] == "–", "always the same"
    assert cells["one more real run: inside"][ttft] == "0.3"
    assert cells["repeated cases beyond the worst allowed"][ttft] == "0"
    assert cells["one more real run: beyond"][ttft] == "1.0", "1.0 is 17 % off 1.2, and 1.2 is 20 % off 1.0"
    assert cells["one more real run: beyond"][cells["error %"].index("TTFT p99")] == "–", "no limit"
    assert cells["naive (1 cases)"][ttft] == "100.0"


def test_stored_emulations_give_the_same_page_without_emulating(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    add_run("a")
    cases = read_cases([measured])
    validate(options, cases, echo(1.1))
    page = (options.out / "SUMMARY.md").read_text()
    assert "host time from table h200_xeon" in page
    (options.out / "SUMMARY.md").unlink()
    validate(options, cases, None)
    assert (options.out / "SUMMARY.md").read_text() == page


def test_what_failed_or_is_not_supported_is_shown_with_its_reason(
    measured: Path, add_run: AddRun, options: Options
) -> None:
    add_run("a")
    add_run("b", engine="tgi")

    def fail(*_: Any) -> Any:
        return SimpleNamespace(status="failed", reason="out of\nmemory")

    emulated = validate(options, read_cases([measured]), fail)
    assert emulated["a"].skipped == "failed: out of memory"
    assert {row["metric"] for row in rows_of(options)} == {
        "skipped: failed: out of memory",
        "skipped: engine tgi: only vllm, sglang are emulated so far",
    }
    page = (options.out / "SUMMARY.md").read_text()
    assert "- a: failed: out of memory" in page


def test_an_unfinished_emulation_is_no_result(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    add_run("a")
    case = read_cases([measured])[0]
    assert validate(options, [case], None)["a"].skipped.startswith("not emulated yet")
    assert not emulate_case(case, echo(1.0), HOST, options.out).skipped


def test_other_cases_than_those_to_emulate_are_taken_from_the_store(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    add_run("a")
    add_run("b")
    cases = read_cases([measured])
    before = validate(options, cases, echo(1.0))
    after = validate(replace(options, emulate="b"), cases, echo(2.0))
    assert after["a"].metrics == before["a"].metrics
    assert after["b"].metrics["ttft_ms_p50"] == pytest.approx(2 * before["b"].metrics["ttft_ms_p50"])


def test_a_prediction_is_the_median_of_its_repeats(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    add_run("a")
    case = read_cases([measured])[0]
    emulate, slower = echo(1.0), {0: 1.0, 1: 1.4, 2: 1.1}

    def repeated(spec: DeploymentSpec, workload: Workload, folder: Path) -> Any:
        emulate.factor = slower[spec.seed]
        return emulate(spec, workload, folder)

    once = emulate_case(case, echo(1.1), HOST, options.out).metrics["ttft_ms_p50"]
    assert emulate_case(case, repeated, HOST, options.out, repeats=3).metrics["ttft_ms_p50"] == once
    kept = options.out / "emulated" / "a"
    assert len(list(kept.glob("requests*.parquet"))) == 3
    assert not emulate_case(case, echo(1.0), HOST, options.out).skipped
    assert len(list(kept.glob("requests*.parquet"))) == 1, "of this emulation alone"


def test_the_emulation_that_knows_nothing_of_the_machines_is_a_predictor_beside_the_others(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    for name in ("a", "b"):
        add_run(name)
    (measured / "manifest.yaml").write_text("host: {a: h200_xeon_quiet}\n")
    cases, guess = read_cases([measured]), replace(options, predictor="default_host")
    emulation = echo(1.2)
    predict(guess, cases, emulation)
    assert {spec.host.name for spec in emulation.specs} == {"h200_xeon"}, "not the manifest's"
    assert not (options.out / "SUMMARY.md").exists()
    predict(guess, cases[:1], echo(1.5))
    validate(options, cases, echo(1.0))
    errors = {
        (row["case"], row["predictor"]): float(row["error_pct"])
        for row in rows_of(options)
        if row["metric"] == "ttft_ms_p50"
    }
    assert errors == pytest.approx(
        {("a", "emulated"): 0, ("b", "emulated"): 0, ("a", "default_host"): 50, ("b", "default_host"): 20},
        abs=1e-3,
    )


def test_a_predictor_may_know_all_machines_but_the_cases_own(
    measured: Path, add_run: AddRun, options: Options, echo: Callable[[float], Echo]
) -> None:
    for name, slowdown in (("a", 1.0), ("b", 4.0)):
        write_log(add_run(name, engine_start_s=slowdown), slowdown)
    (measured / "manifest.yaml").write_text("machine: {a: one, b: other}\n")
    guess = replace(options, folders=(measured,), predictor="guess", host=HostSpec(OTHERS))
    emulation = echo(1.0)
    predict(guess, read_cases([measured], "a"), emulation)
    (spec,) = emulation.specs
    known = [HostTable.load(name).slowdown for name in ("h200_xeon", "h200_xeon_sglang")]
    assert HostTable.load(spec.host.name).slowdown == pytest.approx(max(known)), "of these and one of 4"


def test_predictions_of_others_are_numbers_or_reasons(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    given = {"a": Prediction({"ttft_ms_p50": 12.5}), "b": Prediction(skipped="no such model")}
    write_csv(given, path)
    assert read_csv(path) == given
    path.write_text("case,metric,value\na,ttft_ms_p50,fast\n")
    with pytest.raises(ValidationError, match="'fast', no number"):
        read_csv(path)
    path.write_text("run,metric\n")
    with pytest.raises(ValidationError, match="needs case, metric, value"):
        read_csv(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "host=mac"], "host=mac: accepted: .*h200_xeon"),
        (["x", "host=others"], "host=others: accepted: .*h200_xeon"),
        (["x", "mode=fast"], "accepted: table, measured, free"),
        (["x", "jobs=0"], "jobs=0: .*integer >= 1"),
        (["x", "repeats=many"], "repeats=many: .*integer >= 1"),
        (["x", "run=a"], "unknown option 'run'; accepted: runs, host"),
        (["x", "baselines=nowhere"], "no such folder"),
        (["x", "predictor=emulated"], "accepted: a name other than emulated"),
        (["x", "predictor=../x"], "accepted: a name"),
        (["x", "predictor=guess", "calibrate=1"], "calibrate=1: not with predictor=guess"),
    ],
)
def test_wrong_arguments_teach(arguments: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options.parse(arguments)


def test_several_folders_and_the_default() -> None:
    assert Options.parse(["x", "y", "emulate=0"]).folders == (Path("x"), Path("y"))
    assert Options.parse([]).folders[0].parts[-2:] == ("validation", "runs")


def test_wrong_folder_exits_with_status_2_and_one_line(
    measured: Path, tmp_path: Path, add_run: AddRun, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run("a")
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(measured), "runs=c*"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "is no folder" in lines[0]
