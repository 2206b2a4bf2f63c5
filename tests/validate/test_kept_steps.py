"""Steps kept beside an emulation's requests, and the page made of them without emulating."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from revati.spec import DeploymentSpec, HostSpec
from revati.validate.__main__ import validate
from revati.validate.kept_steps import FILE, WORKERS, keep_steps, read_steps
from revati.validate.options import Options
from revati.validate.runs import read_cases
from revati.validate.steps import COSTS, ENGINE_CORE, emulated_steps
from revati.validate.workers import emulated_calls
from revati.workload import Workload

from .conftest import AddRun, Echo
from .step_logs import write_log
from .test_steps import timeline, with_worker


def test_kept_steps_are_the_timelines_to_the_microsecond(tmp_path: Path) -> None:
    phases = with_worker(20)
    pq.write_table(phases, tmp_path / "phases.parquet")
    keep_steps(tmp_path / "phases.parquet", tmp_path / FILE)
    kept = read_steps(tmp_path / FILE)
    expected = {ENGINE_CORE: emulated_steps(phases), WORKERS: emulated_calls(phases)}
    assert kept.keys() == expected.keys()
    for process, steps in expected.items():
        assert steps
        assert kept[process].kind.tolist() == steps.kind.tolist()
        assert kept[process].size.tolist() == steps.size.tolist()
        for name in COSTS:
            np.testing.assert_allclose(kept[process].cost_us[name], steps.cost_us[name], atol=0.5)


@pytest.mark.parametrize("logged", [True, False])
def test_the_page_is_made_of_what_is_kept(
    measured: Path, add_run: AddRun, tmp_path: Path, echo: Callable[[float], Echo], *, logged: bool
) -> None:
    folder = add_run("a")
    if logged:
        write_log(folder, 1.0)
    options = Options((measured,), host=HostSpec("h200_xeon"), out=tmp_path / "out")
    page = options.out / "STEPS.md"

    def emulate(spec: DeploymentSpec, workload: Workload, trial: Path) -> Any:
        result = echo(1.0)(spec, workload, trial)
        pq.write_table(timeline(20), trial / "phases.parquet")
        return result

    validate(options, cases := read_cases([measured]), emulate)
    assert page.exists() == logged
    if logged:
        first = page.read_text()
        assert "| full | 5–16 | 180 | 20 |" in first
        page.unlink()
        validate(options, cases, None)
        assert page.read_text() == first
