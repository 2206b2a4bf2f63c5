"""What a chunk of Python's frame stack costs a target's host.

A forward pass that no single graph holds begins as many chunks as its engine's frames happen to make it
(see `revati.engines.vllm.frame_chunks`), and each is a page fault in the engine's log.  The calibration
serves the same prompts at many depths of the stack, where they begin different numbers.  With the chunks
taken out, what is left of launches goes by layers, and holds for models that were not calibrated on, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    launches = [one for run in runs for one in _launches(run)]
    if not launches:
        return 0.0
    costs_us, faults = (np.concatenate(columns) for columns in zip(*launches, strict=True))
    engine = np.repeat(np.arange(len(launches)), [len(faults) for _, faults in launches])
    own = (engine[:, None] == np.arange(len(launches))).astype(np.float64)  # what each takes without chunks
    return float(least_absolute_relative(np.column_stack([own, faults]), costs_us)[-1])


def of_chunks_us(kind: npt.NDArray[np.str_], log: Mapping[str, Array], us: float) -> Array:
    """What of each step's launches was chunks, at `us` each; 0 where the log does not count them.

    Args:
        kind: of each step.
        log: columns of a step log, or of a worker's.
    """
    begun: Array = np.where(np.isin(kind, KINDS), log.get(FAULTS, 0.0), 0.0)
    return us * begun


def _launches(run: Run) -> Iterator[tuple[Array, Array]]:
    """Costs in µs at slowdown 1 and page faults of prefills at different depths, by their kind."""
    at_depths, kind = _at_depths(run) & (run.steps["prefill_requests"] > 0), kinds(run)
    for name in KINDS:
        use = at_depths & (kind == name)
        if use.any():
            slowdown = run.slowdown_at(run.steps["input_begin_s"][use])
            yield phase_costs(run)["execute"][use] / slowdown, run.steps[FAULTS][use]


def _at_depths(run: Run) -> npt.NDArray[np.bool_]:
    begin_s = run.steps["step_begin_s"]
    found = np.zeros(len(begin_s), np.bool_)
    for span in run.spans:
        if span["segment"] == AT_DEPTH:
            found |= (begin_s >= span["begin_s"]) & (begin_s <= span["end_s"])
    return found
