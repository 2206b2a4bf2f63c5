"""Which terms of a host's phase a calibration can tell."""

import numpy as np
import pytest

from revati.profile.host_model import fit
from revati.profile.host_samples import Samples


def samples(kind: str, layers: tuple[int, ...]) -> dict[tuple[str, str], Samples]:
    found = Samples()
    for count in layers:
        requests = np.arange(40) % 16 + 1.0
        x = np.column_stack([np.ones(40), requests, np.zeros(40), np.zeros(40), np.full(40, count)])
        found.add(800.0 + 300.0 * count + 5.0 * requests, x, np.ones(40))
    return {("execute", kind): found}


def test_models_of_two_depths_tell_what_a_layer_costs() -> None:
    entry = fit(samples("compiled", (32, 40)))["execute"]["compiled"]
    assert entry["per_layer_us"] == pytest.approx(300, rel=1e-3)
    assert entry["base_us"] == pytest.approx(800, rel=1e-2)


def test_one_model_launched_kernel_by_kernel_costs_what_it_does_by_its_layers() -> None:
    entry = fit(samples("eager", (40,)))["execute"]["eager"]
    assert "base_us" not in entry
    assert entry["per_layer_us"] == pytest.approx(320, rel=1e-3)
    assert entry["per_request_us"] == pytest.approx(5, rel=1e-3)
    entry = fit(samples("full", (40,)))["execute"]["full"]
    assert "per_layer_us" not in entry
