"""The power model's fit: it finds parameters again that made the observations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from revati import paths
from revati.interception.gpu import load_gpu
from revati.profile.power_fit import SHAPE, Fit, Part, expected, layer, root_mean_square, slowdowns
from revati.profile.sustained import FILE, Sustained, cases, read, write
from revati.timing import db
from revati.timing.timer import KernelTimer

GPU = load_gpu("h200")
assert GPU.power is not None
POWER = GPU.power


@pytest.fixture(scope="module")
def timer() -> KernelTimer:
    return KernelTimer(paths.kernel_db_dir(), "h200", SHAPE)


def test_cases_are_written_and_read(tmp_path: Path) -> None:
    found = [Sustained(case, 10.0, 4.0, 7) for case in cases()]
    write(found, tmp_path / FILE)
    assert read(tmp_path / FILE) == found
    assert cases()[0].context_lens == cases()[0].context_lens  # drawn by name
    assert {case.rest_s > 0 for case in cases()} == {True, False}


def test_a_light_kernel_does_not_slow_down_and_a_heavy_one_does() -> None:
    light, none = Part(100.0, 50.0, 100.0 * 400.0), Part(0.0, 0.0, 0.0)
    assert slowdowns(POWER, (light, none), 50) == (1.0, 1.0)
    heavy = Part(1000.0, 500.0, 1000.0 * 1100.0)
    few, many = (slowdowns(POWER, (heavy, none), steps)[0] for steps in (1, 50))
    assert 1.0 <= few < many
    assert many == pytest.approx(1.0 + 0.5 * (POWER.stretch(1100.0) - 1.0), rel=1e-3)


def test_the_fit_finds_the_parameters_behind_the_observations(timer: KernelTimer) -> None:
    truth = replace(POWER, gemm_flops_w=1500.0, attention_sensitivity=0.4)
    gpu = replace(GPU, power=truth)
    found = []
    for case in cases():
        if case.rest_s or not (case.prompts or case.name == "attention200x1090"):
            continue
        parts = tuple(Part.of(gpu, kernels) for kernels in layer(timer, case))
        attention, products = expected(truth, parts)  # type: ignore[arg-type]
        found.append(Sustained(replace(case, rest_s=0.2), 30.0, 10.0, 1))
        found.append(Sustained(case, 10.0 * attention + 20.0 * products, 10.0 * attention, 1))
    fit = Fit(GPU, timer, found)
    assert root_mean_square(fit.residuals(truth)) < 1e-6
    before = root_mean_square(fit.residuals(POWER))
    assert root_mean_square(fit.residuals(fit.fit())) < 0.4 * before


def test_the_shipped_parameters_explain_the_shipped_measurements(timer: KernelTimer) -> None:
    fit = Fit(GPU, timer, read(db.partition(paths.kernel_db_dir(), "h200") / FILE))
    assert len(fit.rows) == 8
    assert root_mean_square(fit.residuals(POWER)) < 0.03
