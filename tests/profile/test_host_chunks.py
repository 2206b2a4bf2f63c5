"""What a chunk of Python's frame stack costs, apart from what layers do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from revati.profile.host_chunks import chunk_us, of_chunks_us
from revati.profile.host_load import AT_DEPTH
from revati.profile.host_logs import Array, Run, kinds
from revati.profile.host_model import fit
from revati.profile.host_samples import collect

STEPS = 60  # the second half of them at other depths
STEP_S = 0.01
SLOWDOWN = 1.5
BEGUN = {8: 0, 32: 160, 40: 1, 80: 3}  # chunks by layers
BY_DEPTH = 0, 0, 40, 540, 160
PLACEMENT = 0.9, 1.2, 1.0, 1.1  # of engines on cores


def run(layers: int, begun: int, placement: float = 1.0, graph: str = "PIECEWISE") -> Run:
    """Small prefills that cost 1000 µs, 100 a layer and 8 a chunk at slowdown 1."""
    rng = np.random.default_rng(layers)
    requests = np.append(rng.integers(1, 9, STEPS // 2), np.ones(STEPS // 2))
    at_s = STEP_S * np.arange(STEPS)
    faults = np.append(begun + rng.integers(0, 3, STEPS // 2), np.resize(BY_DEPTH, STEPS // 2))
    execute_us = placement * (1000.0 + 100.0 * layers) + 5.0 * requests + 8.0 * faults
    steps = {
        "input_begin_s": at_s,
        "step_begin_s": at_s,
        "schedule_end_s": at_s + 1e-4,
        "execute_end_s": at_s + 1e-4 + SLOWDOWN * execute_us * 1e-6,
        "scheduled_tokens": np.full(STEPS, 300.0),
        "scheduled_requests": requests,
        "prefill_requests": np.ones(STEPS),
        "prefill_tokens": np.full(STEPS, 300.0),
        "step": np.arange(STEPS, dtype=float),
        "update_step": np.full(STEPS, -1.0),
        "gpu_was_done": np.full(STEPS, -1.0),
        "execute_faults": faults.astype(float),
    }
    absent = ("input_first_s", "wait_begin_s", "step_end_s", "update_begin_s", "update_end_s", "wake_s")
    steps |= dict.fromkeys(absent, np.full(STEPS, np.nan))
    half_s = at_s[STEPS // 2] - STEP_S / 2
    spans = [
        {"segment": "lone", "begin_s": 0.0, "end_s": half_s},
        {"segment": AT_DEPTH, "begin_s": half_s, "end_s": 1.0},
    ]
    found = Run("", steps, [graph] * STEPS, layers, False, 1, Path(), {}, spans)
    found.slowdowns = dict.fromkeys(range(2), SLOWDOWN)
    return found


@pytest.fixture
def runs() -> Sequence[Run]:
    return [run(*engine, placement) for engine, placement in zip(BEGUN.items(), PLACEMENT, strict=True)]


def test_depths_tell_it_however_fast_an_engine_is(runs: Sequence[Run]) -> None:
    assert chunk_us(runs) == pytest.approx(8.0, rel=0.02)
    assert chunk_us(runs[1:2]) == pytest.approx(8.0, rel=0.02)
    for one in runs:
        one.spans = ()
    assert chunk_us(runs) == 0.0


def test_what_is_left_goes_by_layers() -> None:
    runs = [run(*engine) for engine in BEGUN.items()]
    entry = fit(collect(runs, 8.0))["execute"]["piecewise"]
    assert entry["per_layer_us"] == pytest.approx(100.0, rel=0.01)
    assert entry["base_us"] == pytest.approx(1000.0, rel=0.02)
    assert entry["spread"] == pytest.approx([1.0, 1.0, 1.0], abs=0.01)
    spread = fit(collect(runs))["execute"]["piecewise"]["spread"]
    assert spread[2] - spread[0] > 0.2


def test_steps_that_one_graph_holds_begin_none() -> None:
    def found_us(one: Run) -> Array:
        return of_chunks_us(kinds(one), one.steps, 8.0)

    assert found_us(run(32, 160)).max() == 8.0 * max(BY_DEPTH)
    assert not found_us(run(32, 160, graph="FULL")).any()
    uncounted = run(32, 160)
    del uncounted.steps["execute_faults"]
    assert not found_us(uncounted).any()
