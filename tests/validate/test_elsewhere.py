"""The same deployment on other machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from revati.validate.elsewhere import measured_elsewhere, other_machine_error_pct
from revati.validate.runs import read_cases

from .conftest import AddRun

METRIC = "tpot_ms_p50"
MANIFEST = 'machine: {"old-*": old, "new-*": new, "third-*": third}\n'


def test_only_the_same_deployment_on_another_machine_counts(measured: Path, add_run: AddRun) -> None:
    (measured / "manifest.yaml").write_text(MANIFEST)
    add_run("old-a", 1.0)
    add_run("old-again", 1.1)  # on the same machine
    add_run("new-a", 1.2)
    add_run("new-b", 1.2, num_gpus=2)  # another deployment
    add_run("nowhere", 2.0)  # nobody wrote down where
    found = measured_elsewhere(read_cases([measured]))
    names = {name: [case.name for case in others] for name, others in found.items()}
    assert names == {"old-a": ["new-a"], "old-again": ["new-a"], "new-a": ["old-a", "old-again"]}


def test_the_error_is_of_what_the_others_measured(measured: Path, add_run: AddRun) -> None:
    (measured / "manifest.yaml").write_text(MANIFEST)
    for name, factor in (("old-a", 1.0), ("new-a", 1.2), ("third-a", 0.9)):
        add_run(name, factor)
    cases = read_cases([measured])
    old = next(case for case in cases if case.name == "old-a")
    assert other_machine_error_pct(old, measured_elsewhere(cases), METRIC) == pytest.approx(15.0)
