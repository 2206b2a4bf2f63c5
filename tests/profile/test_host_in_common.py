"""How much of their variance phases and steps have in common, from what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from revati.profile.host_in_common import LAGS, deviates, of_decodes, shares
from revati.virtual_time.spread import CommonDraws

STEPS = 3000


def costs(seed: int, in_common: dict[int, float]) -> tuple[list[np.ndarray], np.ndarray]:
    """Of three phases by step, which cost more with more requests; and these."""
    rng = np.random.default_rng(seed)
    requests = rng.integers(1, 60, STEPS)
    common = CommonDraws(str(seed), in_common)
    together = np.array([common.at(step) for step in range(STEPS)])
    phases = []
    for base_us in (50.0, 400.0, 900.0):
        deviate = together + common.own_weight * rng.normal(size=STEPS)
        phases.append((base_us + 5.0 * requests) * np.exp(0.2 * deviate))
    return phases, requests


def test_what_was_drawn_is_found_again() -> None:
    drawn = {4: 0.1, 24: 0.2, 150: 0.25}
    everything = np.ones(STEPS, np.bool_)
    runs = [of_decodes(*costs(seed, drawn), everything, everything) for seed in range(12)]
    assert all(len(run) == len(LAGS) for run in runs)
    found = shares(runs)
    assert sum(found.values()) == pytest.approx(0.55, abs=0.04)
    for steps, share in drawn.items():
        assert found.get(steps, 0.0) == pytest.approx(share, abs=0.06)


def test_independent_phases_have_nothing_in_common() -> None:
    everything = np.ones(STEPS, np.bool_)
    found = shares(of_decodes(*costs(seed, {}), everything, everything) for seed in range(12))
    assert sum(found.values()) < 0.03


def test_steps_that_launch_nothing_do_not_lie_between() -> None:
    """Every other turn of an event loop may have nothing to do."""
    phases, requests = costs(1, {4: 0.5})
    launched = np.tile([True, False], STEPS)
    spread_out = [np.repeat(phase, 2) for phase in phases]
    twice = of_decodes(spread_out, np.repeat(requests, 2), launched, launched)
    everything = np.ones(STEPS, np.bool_)
    assert twice == pytest.approx(of_decodes(phases, requests, everything, everything))


def test_too_few_steps_tell_nothing() -> None:
    assert np.isnan(deviates(np.full(50, 3.0), np.arange(50.0))).all()
