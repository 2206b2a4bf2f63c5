"""The default host is the median of the machines measured, each counting once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from revati import paths
from revati.validate.machines import machines_of, main, step_errors_pct, typical, unseen, write
from revati.validate.options import validation_dir
from revati.validate.runs import MANIFEST, read_cases
from revati.virtual_time.host_table import HostTable

from .conftest import AddRun
from .step_logs import TABLE, write_log

SHAPE = (8, 0, 0, 32)


def slowdown_of(table: HostTable, phase: str, kind: str) -> float:
    return table.phase_us(phase, kind, *SHAPE) / TABLE.phase_us(phase, kind, *SHAPE)


@pytest.fixture
def rented(measured: Path, add_run: AddRun) -> Path:
    """Machines a, which served much, b, c and d, and runs of nobody knows which."""
    for name, slowdown in (("a", 3.0), ("a_more", 3.0), ("a_most", 3.0), ("b", 1.5), ("c", 1.7), ("d", 0.9)):
        write_log(add_run(name, engine_start_s=1.0 + len(name)), slowdown)
    write_log(add_run("x"), slowdown=9.0)
    (measured / MANIFEST).write_text("machine: {'a*': a, b: b, c: c, d: d}\n")
    return measured


def test_each_machine_counts_once(rented: Path, tmp_path: Path) -> None:
    machines = machines_of(read_cases([rented]))
    assert [machine.name for machine in machines] == ["a", "b", "c", "d"]
    found = HostTable.load(str(write(typical(machines, "vllm"), tmp_path / "typical.yaml")))
    # Beside them the calibrated ones, of 1.149 and 1: the median of 0.9, 1, 1.149, 1.5, 1.7 and 3.
    middle = (HostTable.load("h200_xeon").slowdown + machines[1].slowdown) / 2
    assert found.slowdown == pytest.approx(middle, abs=1e-3)
    busy = HostTable.load(str(write(typical(machines, "vllm") | {"level": "busy"}, tmp_path / "busy.yaml")))
    assert busy.slowdown > machines[2].slowdown


def test_what_only_a_fast_machine_shows_is_as_slow_as_the_rest(
    rented: Path, add_run: AddRun, tmp_path: Path
) -> None:
    run = add_run("d_eager", engine_start_s=8.0, engine_args={"enforce_eager": True})
    write_log(run, 0.9, execute_slowdown=0.72, kind="eager")
    manifest = rented / MANIFEST
    manifest.write_text(manifest.read_text().replace("d: d", "'d*': d"))
    table = HostTable.load(
        str(write(typical(machines_of(read_cases([rented])), "vllm"), tmp_path / "typical.yaml"))
    )
    assert table.slowdown > 1.2
    for phase, factor in (("execute", 0.8), ("update", 1.0)):
        ratio = slowdown_of(table, phase, "eager") / slowdown_of(table, phase, "full")
        assert ratio == pytest.approx(factor, rel=0.05), phase


def test_a_case_on_the_others_host_knows_nothing_of_its_own_machine(rented: Path, tmp_path: Path) -> None:
    cases = read_cases([rented])
    machines = machines_of(cases)
    hosts = {case.name: str(case.host_name) for case in unseen(cases, machines, tmp_path)}
    assert hosts["a"] == hosts["a_more"]
    slowdown = {name: HostTable.load(host).slowdown for name, host in hosts.items()}
    everybody = HostTable.load(str(write(typical(machines, "vllm"), tmp_path / "all.yaml"))).slowdown
    assert slowdown["a"] < everybody < slowdown["d"]
    assert slowdown["x"] == everybody
    # So it is wrong by as much as the machine differs.
    (slow,) = (machine.by_engine["vllm"] for machine in machines if machine.name == "a")
    errors = step_errors_pct(slow, HostTable.load(hosts["a"]), "vllm")
    assert errors == pytest.approx({("full", False): 100 * (slowdown["a"] / 3.0 - 1)}, abs=3)


def test_the_shipped_tables_and_their_errors_are_those_of_the_measured_runs(tmp_path: Path) -> None:
    assert main(["--tables", str(tmp_path), "--page", str(tmp_path / "HOSTS.md")]) == 0
    assert (tmp_path / "HOSTS.md").read_text() == (validation_dir() / "HOSTS.md").read_text()
    for name in ("rented_xeon", "rented_xeon_sglang"):
        made, shipped = (
            yaml.safe_load((folder / f"{name}.yaml").read_text())
            for folder in (tmp_path, paths.conf_dir() / "host")
        )
        assert made == shipped


@pytest.mark.parametrize("engine", ["", "_sglang"])
def test_levels_are_in_order(engine: str) -> None:
    quiet, typical_one, busy = (
        HostTable.load(f"rented_xeon{level}{engine}") for level in ("_quiet", "", "_busy")
    )
    costs_us = [table.phase_us("execute", "full", *SHAPE) for table in (quiet, typical_one, busy)]
    assert costs_us == sorted(costs_us)
    assert costs_us[2] > 1.5 * costs_us[0]
