"""A GPU at its power limit: the native core and the fit of the model's parameters have the same clock."""

from __future__ import annotations

import itertools

import pytest

from revati.interception.gpu import PowerModel, load_gpu
from revati.profile.power_fit import Averages
from tests.virtual_time.copies import printed

BUSY_US, LIGHT_US = 1000.0, 20e3


@pytest.fixture(scope="module")
def power() -> PowerModel:
    found = load_gpu("h200").power
    assert found is not None
    return found


def durations_us(
    power: PowerModel, watts: float, copies_us: list[float], measurements: int = 1
) -> list[float]:
    """Of copies in a row: busy ones draw ``watts`` and follow the clock, light ones draw as if idle."""
    completed_ns = printed(f"""
core.set_power_limits({power.peak_limit_w}, {int(power.peak_time_constant_ms * 1e6)}, {power.limit_w},
                      {int(power.time_constant_ms * 1e6)}, {power.idle_w}, {power.exponent})
watts, sensitivity = {power.idle_w}, 0.0
begin += completion_ns(streams[1], {int(LIGHT_US * 1e3)})
watts, sensitivity = {watts}, 1.0
for _ in range({measurements}):
    core.begin_measurement()
    for us in {copies_us}:
        print(completion_ns(streams[1], int(us * 1e3)))
""")
    return [(after - before) / 1e3 for before, after in itertools.pairwise([0, *completed_ns])]


def test_the_clock_falls_and_recovers_as_the_fit_has_it(power: PowerModel) -> None:
    copies_us = [BUSY_US] * 600 + [LIGHT_US] + [BUSY_US] * 10
    found = durations_us(power, 1200.0, copies_us)
    averages, expected = Averages(power), []
    for at_full_clock_us in copies_us:
        busy = at_full_clock_us == BUSY_US
        expected.append(at_full_clock_us * (averages.stretch if busy else 1.0))
        averages.draw(1200.0 if busy else power.idle_w, expected[-1])
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[0] == BUSY_US < found[100] < found[599] > found[601]
    settled = power.stretch(power.idle_w, 1200.0)
    assert found[599] == pytest.approx(BUSY_US * settled, rel=0.02)


def test_what_the_limit_allows_runs_at_full_clock(power: PowerModel) -> None:
    assert max(durations_us(power, power.limit_w, [BUSY_US] * 2000)) == BUSY_US


def test_a_measurement_begins_with_a_cool_gpu(power: PowerModel) -> None:
    """What an engine launches to start depends on what its compiler finds in its caches."""
    found = durations_us(power, 1200.0, [BUSY_US] * 100, measurements=2)
    assert found[100:] == found[:100]
    assert found[99] > found[0]
