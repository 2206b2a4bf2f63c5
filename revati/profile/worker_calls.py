"""What a worker in a process of its own needs between its calls, and for the prompts in a step's message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from revati.profile.host_logs import Array
from revati.profile.host_model import Phases, fit, predicted
from revati.profile.host_samples import Samples

Rows = npt.NDArray[np.int64]
Columns = Mapping[str, Array]


def paired(worker: Columns, steps: Columns) -> tuple[Rows, Rows]:
    """Which call of a worker belongs to which step of the engine core, idle ones left out.

    Both logs end together, but a worker's may begin earlier.
    """
    calls, scheduled = (np.flatnonzero(log["scheduled_tokens"] > 0) for log in (worker, steps))
    count = min(len(calls), len(scheduled))
    calls, scheduled = calls[len(calls) - count :], scheduled[len(scheduled) - count :]
    same = worker["scheduled_tokens"][calls] == steps["scheduled_tokens"][scheduled]
    return calls[same], scheduled[same]


def between_calls(worker: Columns, steps: Columns) -> tuple[Array, Array]:
    """How long a busy worker takes from execute to sampling, and from sampling to the next execute.

    Args:
        worker: a rank's log (see `revati.engines.vllm.worker_log`).
        steps: the engine core's, in seconds of the same clock.

    Returns:
        Two arrays of shape (calls,) in µs, of the call's own sampling and of its execute; NaN where the
        worker waited for the message to come.
    """
    to_sample_us, to_execute_us = np.full((2, len(worker["scheduled_tokens"])), np.nan)
    calls, at = paired(worker, steps)
    there = steps["sample_end_s"][at] <= worker["execute_end_s"][calls]
    lasted_s = worker["sample_begin_s"] - worker["execute_end_s"]
    to_sample_us[calls[there]] = 1e6 * lasted_s[calls[there]]
    calls, at = calls[calls > 0], at[calls > 0]
    before_s = worker["sample_end_s"][calls - 1]
    there = (worker["scheduled_tokens"][calls - 1] > 0) & (steps["execute_end_s"][at] <= before_s)
    to_execute_us[calls[there]] = 1e6 * (worker["execute_begin_s"][calls] - before_s)[there]
    return to_sample_us, to_execute_us


def turnaround(logs: Sequence[tuple[Columns, Columns, Array]]) -> Phases:
    """Fit ``executed``, ``sampled`` and ``worker_unpack``; the slowdown of these logs counts as 1.

    Args:
        logs: a worker's, the engine core's, and the features (steps, 5) of its steps.
    """
    parts = []
    for worker, steps, features in logs:
        calls, at = paired(worker, steps)
        to_sample_us, to_execute_us = between_calls(worker, steps)
        parts.append((to_sample_us[calls], to_execute_us[calls], features[at]))
    if not parts:
        return {}
    to_sample_us, to_execute_us, features = (np.concatenate(part) for part in zip(*parts, strict=True))
    prompts = features[:, 3] > 0
    phases = _fit("executed", to_sample_us, features)
    phases |= _fit("sampled", to_execute_us[~prompts], features[~prompts])
    if "sampled" in phases:
        of_others = np.column_stack([features, np.ones(len(features))])
        unpacking_us = to_execute_us - predicted(phases["sampled"]["any"], of_others)
        phases |= _fit("worker_unpack", unpacking_us[prompts], features[prompts])
    return phases


def _fit(phase: str, cost_us: Array, features: Array) -> Phases:
    samples = Samples()
    samples.add(cost_us, features, np.ones(len(cost_us)))
    return fit({(phase, "any"): samples})
