"""The power model's fit: it finds parameters again that made the courses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from revati import paths
from revati.interception.gpu import PowerModel, load_gpu
from revati.profile.clock import Samples
from revati.profile.clock_courses import FILE, KINDS, Course, Layer, Step, plans, read, write
from revati.profile.power_fit import (
    Averages,
    Fit,
    Part,
    compare,
    follow,
    layer,
    less_level,
    root_mean_square,
    sensitivities,
    timers_of,
)
from revati.timing import db
from revati.timing.timer import KernelTimer

GPU = load_gpu("h200")
assert GPU.power is not None
POWER = GPU.power


@pytest.fixture(scope="module")
def timers() -> dict[Layer, KernelTimer]:
    return timers_of("h200")


def parts_of(
    timers: dict[Layer, KernelTimer], kind: str, power: PowerModel = POWER
) -> dict[str, tuple[Part, Part]]:
    timer, gpu = timers[KINDS[kind].layer], replace(GPU, power=power)
    attention, products = (Part.of(gpu, part, timer.launch_gap_us) for part in layer(timer, KINDS[kind]))
    return {kind: (attention, products)}


def course_of(timers: dict[Layer, KernelTimer], kind: str, power: PowerModel, seconds: float = 1.0) -> Course:
    """What a GPU that behaves as the model would be measured to do, rests of half a second in between."""
    parts = parts_of(timers, kind, power)
    course, at_ms = Course(kind, "modelled"), 0.0
    while at_ms < seconds * 1e3:
        course.steps.append(Step(kind, at_ms, 0.0, 0.0))
        one = follow(power, parts, course)[-1]
        step_ms = one.attention_ms + one.products_ms
        course.steps[-1] = Step(kind, at_ms, step_ms, one.attention_ms, GPU.sm_clock_mhz / one.stretch)
        at_ms += step_ms
        if at_ms < 500 <= at_ms + step_ms:
            at_ms += 500
    return course


def test_courses_are_written_and_read(tmp_path: Path) -> None:
    found = [Course(name, "GPU-1", 5.0, [Step("prompts1024", 0.0, 10.0, 4.0)]) for name in plans()]
    write(found, tmp_path / FILE)
    assert read(tmp_path / FILE) == found
    assert all(set(phase.kinds) <= set(KINDS) for phases in plans().values() for phase in phases)


def test_a_steps_clock_is_the_mean_of_the_samples_within() -> None:
    samples = Samples()
    for ms, mhz in ((0, 1980), (20, 1900), (40, 1800)):
        samples.add(f"2026/11/29 02:00:00.{ms:03d}, {mhz}, {mhz / 3}")
    begin_s = samples._at_s[0]
    assert samples.means(begin_s + 0.01, begin_s + 0.05) == (1850.0, 616.7)
    assert samples.means(begin_s + 0.05, begin_s + 0.06) == (None, None)


def test_peaks_are_cut_before_the_average_is() -> None:
    averages = Averages(POWER)
    averages.draw(POWER.peak_limit_w, 1e6)
    assert averages.stretch == pytest.approx(POWER.stretch(0.0, POWER.peak_limit_w), rel=1e-2)  # the slow one
    averages = Averages(POWER)
    averages.draw(1.5 * POWER.peak_limit_w, 2 * POWER.peak_time_constant_ms * 1e3)
    assert averages.stretch > 1.0
    assert averages.slow_w < POWER.limit_w
    averages = Averages(POWER)
    averages.draw(0.99 * POWER.limit_w, 1e7)
    assert averages.stretch == 1.0


def test_the_fit_finds_the_parameters_behind_the_courses(timers: dict[Layer, KernelTimer]) -> None:
    truth = replace(POWER, flops_w=1400.0, attention_sensitivity=0.4)
    courses = [
        course_of(timers, kind, truth)
        for kind in ("prompts2048", "mixed1072", "attention200x1090", "products200")
    ]
    fit = Fit(GPU, timers, courses)
    assert root_mean_square(fit.residuals(truth)) < 1e-6
    before = root_mean_square(fit.residuals(POWER))
    fitted = fit.fit()
    assert root_mean_square(fit.residuals(fitted)) < 0.3 * before
    assert fitted.attention_sensitivity == pytest.approx(0.4, rel=0.1)


def test_a_card_that_is_slower_at_any_clock_says_little_of_the_power(
    timers: dict[Layer, KernelTimer],
) -> None:
    course = course_of(timers, "products200", POWER)
    slower = replace(course, steps=[step._replace(step_ms=1.03 * step.step_ms) for step in course.steps])
    found = compare(slower, follow(POWER, parts_of(timers, "products200"), slower), GPU.sm_clock_mhz)
    times = [one for one in less_level(found) if one.what != "clock"]
    assert [one.value for one in times if one.course == "level"] == [pytest.approx(0.0296, rel=0.3)]
    assert max(abs(one.value) for one in times if one.course != "level") < 0.01


def test_steps_before_a_course_is_judged_only_warm_the_gpu(timers: dict[Layer, KernelTimer]) -> None:
    course = course_of(timers, "products200", POWER)
    late = replace(course, judged_from_ms=course.steps[len(course.steps) // 2].at_ms)
    predicted = follow(POWER, parts_of(timers, "products200"), course)
    assert (
        0
        < len(compare(late, predicted, GPU.sm_clock_mhz))
        < len(compare(course, predicted, GPU.sm_clock_mhz))
    )


def test_what_follows_the_clock_is_read_from_a_course(timers: dict[Layer, KernelTimer]) -> None:
    found = sensitivities(course_of(timers, "products200", POWER, 3.0), GPU.sm_clock_mhz)
    share = sum(one.duration_us for one in layer(timers[KINDS["products200"].layer], KINDS["products200"])[1])
    _, products = parts_of(timers, "products200")["products200"]
    assert found == {"products": pytest.approx(products.sensitive_us / share, rel=0.15)}
    assert sensitivities(course_of(timers, "grouped_products24", POWER), GPU.sm_clock_mhz) == {}


@pytest.mark.parametrize(("gpu", "unexplained"), [("h200", 0.035), ("h100", 0.06)])
def test_the_shipped_parameters_explain_the_shipped_measurements(gpu: str, unexplained: float) -> None:
    description = load_gpu(gpu)
    assert description.power is not None
    fit = Fit(
        description,
        timers_of(gpu),
        read(db.partition(paths.kernel_db_dir(), gpu) / FILE),
    )
    assert root_mean_square(fit.residuals(description.power)) < unexplained
