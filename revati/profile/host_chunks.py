"""What a chunk of Python's frame stack costs a target's host, told from engines that begin different numbers.

A forward pass that no single graph holds begins as many chunks as its engine's frames happen to make it
(see `revati.engines.vllm.frame_chunks`), and each is a page fault in the engine's log.  With the chunks taken
out, what is left of launches goes by layers, and holds for models that were not calibrated on, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from revati.profile.host_logs import Array, Run, kinds, phase_costs, queue_is_full, step_features
from revati.profile.regression import least_absolute_relative

KINDS = ("piecewise", "compiled")
FAULTS = "execute_faults"
LEAST_DEPTHS = 3  # of models, by which chunks are told from layers


def chunk_us(runs: Sequence[Run]) -> float:
    """In µs at slowdown 1; 0 where the logs do not tell.

    They do not if some count no page faults, or if fewer than three models differ in their layers.

    Args:
        runs: of one GPU, their slowdowns known.
    """
    if len({run.layers for run in runs}) < LEAST_DEPTHS or not all(FAULTS in run.steps for run in runs):
        return 0.0
    features, costs_us = [], []
    for run in runs:
        cost_us, kind = phase_costs(run)["execute"], kinds(run)
        slowdown = run.slowdown_at(run.steps["input_begin_s"])
        told = np.isfinite(cost_us) & ~queue_is_full(run, kind)
        ones, requests, _, prefills, layers = step_features(run, updated=False).T
        for name in KINDS:
            use = told & (kind == name)
            terms = np.stack([ones, requests, prefills, layers], axis=1)[use]
            of_kind = [terms if name == one else np.zeros_like(terms) for one in KINDS]
            features.append(np.column_stack([*of_kind, run.steps[FAULTS][use]]))
            costs_us.append((cost_us / slowdown)[use])
    return float(least_absolute_relative(np.concatenate(features), np.concatenate(costs_us))[-1])


def of_chunks_us(run: Run, us: float) -> Array:
    """What of each step's launches at slowdown 1 was chunks, at `us` each; 0 where they were not counted."""
    if FAULTS not in run.steps:
        return np.zeros(len(run.graph))
    result: Array = np.where(np.isin(kinds(run), KINDS), run.steps[FAULTS] * us, 0.0)
    return result
