"""A case's host table comes from what else its engine served, and others on its machine."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from revati.validate.calibration import calibrate, calibrated
from revati.validate.calibration_runs import has_long_log
from revati.validate.options import validation_dir
from revati.validate.runs import CalibratedHost, model_shape, read_cases
from revati.virtual_time.host_table import HostTable

from .conftest import AddRun
from .step_logs import GRAPH_SIZES, write_log

TABLE = HostTable.load("h200_xeon", slowdown=1.0)


def calibrate_own(measured: Path, out: Path, default: str = "h200_xeon") -> tuple[CalibratedHost, HostTable]:
    """What is calibrated for the case that is called own."""
    case = next(case for case in read_cases([measured]) if case.name == "own")
    found = calibrated(case, default, out)
    assert found is not None
    return found, HostTable.load(str(found.path))


def slowdown_of(table: HostTable, phase: str, kind: str) -> float:
    """Of the mean: logs tell means; a table varies around its medians."""
    mean_us = fmean(table.spread[phase, kind].factors) * table.phase_us(phase, kind, 8, num_layers=32)
    return mean_us / TABLE.phase_us(phase, kind, 8, num_layers=32)


def test_a_case_is_calibrated_on_the_other_runs_of_its_engine(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    write_log(add_run("own", engine_start_s=1.0), slowdown=9.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3)
    write_log(add_run("of_another_engine", engine_start_s=2.0), slowdown=5.0)
    found, table = calibrate_own(measured, tmp_path, "h200_xeon_contended")
    assert (found.base, list(found.runs)) == ("h200_xeon", ["other"])
    for phase in ("schedule", "execute", "sample", "update"):
        assert slowdown_of(table, phase, "full") == pytest.approx(1.3, rel=1e-3)
    # What the log does not show follows the engine core's own work.
    ratio = table.phase_us("frontend_busy", num_reqs=8) / TABLE.phase_us("frontend_busy", num_reqs=8)
    assert ratio == pytest.approx(table.slowdown, rel=1e-3)
    assert 1.2 < ratio < 1.35


def test_kinds_that_no_log_shows_are_related_as_on_the_typical_machine(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3)
    _, table = calibrate_own(measured, tmp_path)
    typical = HostTable.load("rented_xeon", slowdown=1.0)

    def us(of: HostTable, kind: str) -> float:
        return of.phase_us("execute", kind, 8, 300, 1, num_layers=32)

    for kind in ("piecewise", "compiled"):
        assert us(table, kind) / us(table, "full") == pytest.approx(
            us(typical, kind) / us(typical, "full"), rel=1e-3
        )


def test_a_host_that_stalls_does_so_in_its_table(measured: Path, add_run: AddRun, tmp_path: Path) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3, stall=5.0)
    _, table = calibrate_own(measured, tmp_path)
    factors = table.spread["execute", "full"].factors
    usual_us = 1.3 * TABLE.phase_us("execute", "full", 8, num_layers=32)
    stalled = [one for one in factors if one > 1.05]
    assert len(stalled) / len(factors) == pytest.approx(0.1, abs=0.01)
    assert slowdown_of(table, "execute", "full") == pytest.approx(1.4 * 1.3, rel=1e-2)
    assert max(table.spread["update", "full"].factors) < 2.0
    # Stalls of 4 parts of execute's usual time, in a tenth of the steps, and the GPU's end may come in one.
    late = [one for one in table.spread["wake", "full"].factors if one > 1.0]
    execute_us, sample_us = (
        TABLE.phase_us(phase, "full", 8, num_layers=32) for phase in ("execute", "sample")
    )
    share = 0.4 * execute_us / (1.4 * execute_us + sample_us)
    assert len(late) / len(factors) == pytest.approx(share, abs=0.01)
    assert fmean(late) * TABLE.phase_us("wake", "full", 8) == pytest.approx(4 * usual_us, rel=0.2)


def test_a_host_that_stalls_does_so_where_it_might_wait_as_well(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3, stall=5.0)
    eager = {"engine_start_s": 2.0, "engine_args": {"enforce_eager": True}}
    write_log(add_run("beside", **eager), slowdown=1.3, kind="eager", stall=5.0)
    (measured / "manifest.yaml").write_text("machine: {'*': here}\n")
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.4 * 1.3, rel=2e-2)


def test_the_first_launches_of_graphs_are_no_stalls(measured: Path, add_run: AddRun, tmp_path: Path) -> None:
    add_run("own", engine_start_s=1.0)
    resolved = {"cudagraph_capture_sizes": list(GRAPH_SIZES), "num_gpu_blocks": 14727}
    write_log(add_run("other", engine_start_s=1.0, resolved=resolved), slowdown=1.3, first_launch=50.0)
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "sample", "full") == pytest.approx(1.3, rel=1e-3)


def test_what_waits_for_the_gpu_is_no_stall(measured: Path, add_run: AddRun, tmp_path: Path) -> None:
    add_run("own", engine_start_s=1.0, engine_args={"enforce_eager": True})
    arguments = {"engine_start_s": 1.0, "engine_args": {"enforce_eager": True}}
    write_log(add_run("other", **arguments), slowdown=1.3, kind="eager", stall=50.0)
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.3, rel=1e-3)


def test_a_host_that_is_often_slow_does_not_wait_then(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    eager = {"engine_start_s": 1.0, "engine_args": {"enforce_eager": True}}
    add_run("own", **eager)
    write_log(add_run("other", **eager), slowdown=1.3, kind="eager", stall=2.2, stall_every=3)
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.3 * (1 + 1.2 / 3), rel=1e-2)


def test_what_an_engines_runs_do_not_show_is_known_from_its_neighbours(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.5, execute_slowdown=3.0)
    beside = {"engine_start_s": 2.0, "engine_args": {"enforce_eager": True}}
    write_log(add_run("beside", **beside), slowdown=1.0, kind="eager")
    write_log(add_run("elsewhere", **beside), slowdown=7.0, kind="eager")
    (measured / "manifest.yaml").write_text("machine: {elsewhere: far, '*': here}\n")
    found, table = calibrate_own(measured, tmp_path)
    assert list(found.runs) == ["other", "beside"]
    assert slowdown_of(table, "execute", "full") == pytest.approx(3.0, rel=1e-2)
    # Nothing says how the engines compare.
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.0, rel=1e-2)


def test_an_engine_slower_than_its_neighbours_is_so_in_what_they_alone_show(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.5)
    write_log(add_run("beside", engine_start_s=2.0), slowdown=1.0)
    eager = {"engine_start_s": 3.0, "engine_args": {"enforce_eager": True}}
    write_log(add_run("beside_eager", **eager), slowdown=1.2, kind="eager")
    (measured / "manifest.yaml").write_text("machine: {'*': here}\n")
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "execute", "full") == pytest.approx(1.5, rel=1e-2)
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.5 * 1.2, rel=1e-2)


def test_a_neighbour_with_the_same_model_tells_more_than_others(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.5)
    beside: dict[str, Any] = {"engine_start_s": 2.0, "engine_args": {"enforce_eager": True}}
    write_log(add_run("same", **beside), slowdown=2.0, kind="eager")
    write_log(add_run("larger", **beside, model="llama-13b"), slowdown=4.0, kind="eager")
    (measured / "manifest.yaml").write_text("machine: {'*': here}\n")
    found, table = calibrate_own(measured, tmp_path)
    assert list(found.runs) == ["other", "same", "larger"]
    assert slowdown_of(table, "execute", "eager") == pytest.approx(2.0, rel=1e-2)


def test_its_model_elsewhere_tells_more_than_another_one_beside_it(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    """The median of three machines, related by what both show: eager steps twice as slow as others there."""
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.5)
    eager: dict[str, Any] = {"engine_args": {"enforce_eager": True}}
    for at, (slowdown, ratio) in enumerate(((3.0, 2.0), (1.0, 1.0), (2.0, 5.0))):
        write_log(add_run(f"far{at}", engine_start_s=10.0 + at), slowdown=slowdown)
        far_eager = add_run(f"far{at}-eager", engine_start_s=20.0 + at, **eager)
        write_log(far_eager, slowdown=slowdown, execute_slowdown=slowdown * ratio, kind="eager")
    larger = add_run("larger", engine_start_s=2.0, model="llama-13b", **eager)
    write_log(larger, slowdown=4.0, kind="eager")
    (measured / "manifest.yaml").write_text(
        "machine: {'far0*': 'a', 'far1*': 'b', 'far2*': 'c', '*': here}\n"
    )
    found, table = calibrate_own(measured, tmp_path)
    assert "far0-eager" in found.runs
    assert slowdown_of(table, "execute", "eager") == pytest.approx(1.5 * 2.0, rel=2e-2)


def test_an_engine_without_other_runs_is_as_slow_as_its_neighbours(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    write_log(add_run("own", engine_start_s=1.0), slowdown=9.0)
    write_log(add_run("beside", engine_start_s=2.0), slowdown=1.3)
    (measured / "manifest.yaml").write_text("machine: {'*': here}\n")
    _, table = calibrate_own(measured, tmp_path)
    assert slowdown_of(table, "execute", "full") == pytest.approx(1.3, rel=1e-3)


def test_kinds_that_no_log_shows_are_as_slow_as_the_phase(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3, execute_slowdown=2.6)
    _, table = calibrate_own(measured, tmp_path)
    for phase, slowdown in (("execute", 2.6), ("update", 1.3)):
        ratio = table.phase_us(phase, "eager", 8, num_layers=32) / TABLE.phase_us(
            phase, "eager", 8, num_layers=32
        )
        assert ratio == pytest.approx(slowdown, rel=0.1), phase


def test_without_another_run_of_its_engine_a_case_has_no_table_of_its_own(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    write_log(add_run("own", engine_start_s=1.0), slowdown=1.3)
    write_log(add_run("own_rep2", engine_start_s=1.0), slowdown=1.3)
    (case,) = read_cases([measured])
    assert calibrated(case, "h200_xeon", tmp_path) is None


def test_runs_that_do_not_say_which_engine_served_them_share_none(
    measured: Path, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("own")
    write_log(add_run("other"), slowdown=1.3)
    case = next(case for case in read_cases([measured]) if case.name == "own")
    assert calibrated(case, "h200_xeon", tmp_path) is None


def test_few_steps_say_nothing(measured: Path, add_run: AddRun, tmp_path: Path) -> None:
    add_run("own", engine_start_s=1.0)
    write_log(add_run("other", engine_start_s=1.0), slowdown=1.3, count=160)
    case = next(case for case in read_cases([measured]) if case.name == "own")
    assert calibrated(case, "h200_xeon", tmp_path) is None


def test_sglang_knows_nothing_from_its_model_elsewhere(tmp_path: Path) -> None:
    """It runs no compiled forward whose frames grow with the layers."""
    (case,) = read_cases([validation_dir() / "runs"], "sglang-three-llama31_8b_tp2_pp1_off_sg")
    found = calibrated(case, "h200_xeon", tmp_path)
    assert found is not None
    assert {run.split("-")[1] for run in found.runs} == {"three"}


def test_an_engine_of_sglang_is_known_from_its_neighbours_too(tmp_path: Path) -> None:
    (case,) = read_cases([validation_dir() / "runs"], "sglang-many-llama31_8b_*")
    found = calibrated(case, "h200_xeon", tmp_path)
    assert found is not None
    assert {run.split("_tp1")[0] for run in found.runs} == {"sglang-many-llama13b", "sglang-many-qwen25_14b"}
    table, one = HostTable.load(str(found.path)), HostTable.load(found.base, slowdown=1.0)
    decode = ("execute", "eager", 300, 0, 0, 32)
    assert 1.4 < table.phase_us(*decode) / one.phase_us(*decode) < 2.0


def test_launching_without_graphs_takes_as_long_a_layer_whatever_the_model(tmp_path: Path) -> None:
    """Of 32, 40 and 64 layers, on one machine."""
    cases = read_cases([validation_dir() / "runs"], "eager-*_eager_sg_*")
    a_layer_us = []
    for case in cases:
        logs = [run.folder for run in case.runs if has_long_log(run.folder)]
        found = calibrate(logs, "h200_xeon")
        assert found is not None
        table = HostTable.load(str(found.write(tmp_path / f"{case.name}.yaml")))
        layers = model_shape(case.description["model"]).num_hidden_layers
        mean_us = fmean(table.spread["execute", "eager"].factors) * table.phase_us(
            "execute", "eager", 8, 0, 0, layers
        )
        a_layer_us.append(mean_us / layers)
    assert len(a_layer_us) == 3
    assert max(a_layer_us) / min(a_layer_us) < 1.25


def test_stages_of_sglang_are_calibrated_on_their_own_logs(tmp_path: Path) -> None:
    """The host of one of these runs launched prefills more slowly than that of the other."""
    cases = read_cases([validation_dir() / "runs"])
    launch_us = []
    for case in (case for case in cases if case.name.startswith("sglang-llama13b_tp1_pp4_")):
        found = calibrated(case, "h200_xeon", tmp_path)
        assert found is not None
        assert (found.base, list(found.runs)) == ("h200_xeon_sglang", [case.name])
        table = HostTable.load(str(found.path), pipelined=True)
        launch_us.append(table.phase_us("execute", "eager", 1, 300, 1, num_layers=10))
        assert table.phase_us("frontend_busy", num_reqs=8) == HostTable.load(found.base).phase_us(
            "frontend_busy", num_reqs=8
        )
    slower, faster = launch_us
    assert 1.1 < slower / faster < 1.5


def test_a_saturated_pipelines_log_is_joined_by_others_of_its_engine(tmp_path: Path) -> None:
    (case,) = read_cases([validation_dir() / "runs"], "sglang-x2-llama13b_tp1_pp2_off_2048x32")
    found = calibrated(case, "h200_xeon", tmp_path)
    assert found is not None
    assert [run.removeprefix("sglang-x2-llama13b_tp1_pp2_") for run in found.runs] == [
        "off_2048x32",
        "off_sg",
        "sg_r12",
    ]
