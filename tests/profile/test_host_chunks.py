"""What a chunk of Python's frame stack costs, apart from what layers do."""

from pathlib import Path

import numpy as np
import pytest

from revati.profile.host_chunks import chunk_us, of_chunks_us
from revati.profile.host_logs import Run
from revati.profile.host_model import fit
from revati.profile.host_samples import collect

STEPS = 60
SLOWDOWN = 1.5
BEGUN = {8: 0, 32: 160, 40: 1, 80: 3}  # chunks by layers


def run(layers: int, begun: int, counted: bool = True) -> Run:
    """Small prefills that cost 1000 µs, 100 a layer and 8 a chunk at slowdown 1."""
    rng = np.random.default_rng(layers)
    requests = rng.integers(1, 9, STEPS).astype(float)
    at_s = 0.01 * np.arange(STEPS)
    faults = begun + rng.integers(0, 3, STEPS)
    execute_s = SLOWDOWN * (1000.0 + 100.0 * layers + 5.0 * requests + 8.0 * faults) * 1e-6
    nan = np.full(STEPS, np.nan)
    steps = {
        "input_begin_s": at_s,
        "step_begin_s": at_s,
        "schedule_end_s": at_s + 1e-4,
        "execute_end_s": at_s + 1e-4 + execute_s,
        "scheduled_tokens": 300.0 * np.ones(STEPS),
        "scheduled_requests": requests,
        "prefill_requests": np.ones(STEPS),
        "prefill_tokens": 300.0 * np.ones(STEPS),
        "step": np.arange(STEPS, dtype=float),
        "update_step": np.full(STEPS, -1.0),
        "gpu_was_done": np.full(STEPS, -1.0),
    }
    absent = ("input_first_s", "wait_begin_s", "step_end_s", "update_begin_s", "update_end_s", "wake_s")
    steps |= dict.fromkeys(absent, nan)
    if counted:
        steps["execute_faults"] = faults.astype(float)
    found = Run("", steps, ["PIECEWISE"] * STEPS, layers, False, 1, Path(), {})
    found.slowdowns = dict.fromkeys(range(2), SLOWDOWN)
    return found


def test_chunks_are_told_from_layers() -> None:
    runs = [run(layers, begun) for layers, begun in BEGUN.items()]
    each_us = chunk_us(runs)
    assert each_us == pytest.approx(8.0, rel=0.02)
    assert of_chunks_us(runs[1], each_us).min() > 1200

    with_chunks, without = (fit(collect(runs, us))["execute"]["piecewise"] for us in (0.0, each_us))
    assert without["per_layer_us"] == pytest.approx(100.0, rel=0.02)
    assert without["base_us"] == pytest.approx(1000.0, rel=0.05)
    spreads = [entry["spread"][2] - entry["spread"][0] for entry in (with_chunks, without)]
    assert spreads[1] < 0.2 * spreads[0]


def test_logs_that_do_not_tell_them_apart_say_nothing() -> None:
    assert chunk_us([run(32, 160), run(40, 1)]) == 0.0
    older = [run(layers, begun, counted=layers != 8) for layers, begun in BEGUN.items()]
    assert chunk_us(older) == 0.0
    assert not of_chunks_us(older[0], 8.0).any()


def test_steps_that_one_graph_holds_begin_none() -> None:
    whole = run(32, 160)
    whole.graph = ["FULL"] * STEPS
    assert not of_chunks_us(whole, 8.0).any()
