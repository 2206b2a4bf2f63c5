"""What a chunk of Python's frame stack costs a target's host.

A forward pass that no single graph holds begins as many chunks as its engine's frames happen to make it
(see `revati.engines.vllm.frame_chunks`), and each is a page fault in the engine's log.  The calibration
serves the same prompts at many depths of the stack, where they begin different numbers.  With the chunks
taken out, what is left of launches goes by layers, and holds for models that were not calibrated on, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from revati.profile.host_load import AT_DEPTH
from revati.profile.host_logs import Array, Run, kinds, phase_costs
from revati.profile.regression import least_absolute_relative

KINDS = ("piecewise", "compiled", "eager")
FAULTS = "execute_faults"


def chunk_us(runs: Sequence[Run]) -> float:
    """In µs at slowdown 1; 0 where no engine was logged at several depths.

    Args:
        runs: of one GPU, their slowdowns known.
    """
    launches = [_launches(run) for run in runs]
    costs_us = np.concatenate([cost_us for cost_us, _ in launches])
    if not len(costs_us):
        return 0.0
    engine = np.repeat(np.arange(len(runs)), [len(cost_us) for cost_us, _ in launches])
    own = (engine[:, None] == np.unique(engine)).astype(np.float64)  # what each takes without chunks
    faults = np.concatenate([faults for _, faults in launches])
    return float(least_absolute_relative(np.column_stack([own, faults]), costs_us)[-1])


def of_chunks_us(run: Run, us: float) -> Array:
    """What of each step's launches at slowdown 1 was chunks, at `us` each; 0 where they were not counted."""
    if FAULTS not in run.steps:
        return np.zeros(len(run.graph))
    result: Array = np.where(np.isin(kinds(run), KINDS), run.steps[FAULTS] * us, 0.0)
    return result


def _launches(run: Run) -> tuple[Array, Array]:
    """Costs in µs at slowdown 1 and page faults of an engine's prefills at different depths."""
    use = _at_depths(run) & (run.steps["prefill_requests"] > 0)
    slowdown = run.slowdown_at(run.steps["input_begin_s"][use])
    return phase_costs(run)["execute"][use] / slowdown, run.steps.get(FAULTS, np.zeros(len(use)))[use]


def _at_depths(run: Run) -> npt.NDArray[np.bool_]:
    begin_s = run.steps["step_begin_s"]
    found = np.zeros(len(begin_s), np.bool_)
    for span in run.spans:
        if span["segment"] == AT_DEPTH:
            found |= (begin_s >= span["begin_s"]) & (begin_s <= span["end_s"])
    return found
