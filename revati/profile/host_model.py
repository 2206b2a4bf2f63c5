"""A linear model of each phase's cost, and what tensor parallelism makes of it."""

from __future__ import annotations

import numpy as np

from revati.profile.host_logs import Array
from revati.profile.host_samples import Samples
from revati.profile.regression import least_absolute_relative
from revati.virtual_time.spread import QUANTILES

TERMS = ("base_us", "per_request_us", "per_token_us", "per_prefill_us", "per_layer_us", "latency_us")

# Which terms a phase may depend on, in the order of TERMS. Waking a thread of another process takes a
# latency that doesn't follow the slowdown of running code.
ALLOWED = {
    "schedule": (1, 1, 1, 1, 0, 0),
    "execute": (1, 1, 0, 1, 1, 0),
    "sample": (1, 1, 0, 1, 0, 0),
    "wake": (1, 1, 0, 0, 0, 0),
    "collect": (1, 1, 0, 0, 0, 0),
    "update": (1, 1, 0, 0, 0, 0),
    "output": (1, 1, 0, 0, 0, 0),
    "worker_unpack": (1, 0, 1, 1, 0, 0),
    "executed": (1, 1, 1, 1, 0, 0),
    "sampled": (1, 1, 0, 0, 0, 0),
    "send": (1, 0, 0, 0, 0, 0),
    "receive": (1, 0, 0, 0, 0, 0),
    "broadcast": (1, 0, 0, 0, 0, 0),
    "requests_receive": (1, 0, 0, 0, 0, 0),
    "requests_send": (1, 0, 0, 0, 0, 0),
    "hidden_receive": (1, 0, 0, 0, 0, 0),
    "tokens_send": (1, 0, 0, 0, 0, 0),
    "input": (1, 0, 1, 0, 0, 0),
    "ipc": (1, 0, 1, 0, 0, 1),
    "unpack": (1, 0, 1, 0, 0, 0),
    "frontend_submit": (1, 0, 0, 0, 0, 0),
    "output_ipc": (1, 1, 0, 0, 0, 1),
    "frontend_busy": (1, 1, 0, 0, 0, 0),
    "frontend_token": (1, 1, 0, 0, 0, 1),
}

# Launched kernel by kernel, a step costs so much a layer and little else, which one model alone cannot tell.
BY_LAYER = ("execute", "eager")

Phases = dict[str, dict[str, dict[str, float]]]


def fit(samples: dict[tuple[str, str], Samples], least: int = 20) -> Phases:
    """Fit each phase and kind that has enough observations."""
    result: Phases = {}
    for (phase, kind), sample in sorted(samples.items()):
        cost, slowdown = np.concatenate(sample.cost_us), np.concatenate(sample.slowdown)
        features = np.concatenate(sample.features)
        if len(cost) < least:
            continue
        features = np.column_stack([features, 1.0 / slowdown])
        allowed = np.array(ALLOWED[phase], np.bool_)
        if not (features[:, 3] > 0).any():
            allowed[2:4] &= phase in ("input", "ipc", "unpack")
        if len(np.unique(features[:, 4])) < 2:
            allowed[4] = (phase, kind) == BY_LAYER
            allowed[0] &= not allowed[4]
        coefficients = np.zeros(len(TERMS))
        coefficients[allowed] = least_absolute_relative(features[:, allowed], cost / slowdown)
        ratio = cost / slowdown / (features @ coefficients)
        entry = {t: round(float(c), 4) for t, c in zip(TERMS, coefficients, strict=True) if c > 0}
        entry["samples"] = len(cost)
        entry["spread"] = [round(float(q), 3) for q in np.quantile(ratio, QUANTILES)]  # type: ignore[assignment]
        result.setdefault(phase, {})[kind] = entry
    return result


def predicted(entry: dict[str, float], features: Array) -> Array:
    """A fitted phase's cost in µs at slowdown 1 for features (n, 6) in the order of TERMS."""
    result: Array = features @ np.array([entry.get(term, 0.0) for term in TERMS])
    return result
