"""Observations of each phase's cost, with what it depends on and how slow the host was at that moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from revati.profile.host_chunks import of_chunks_us
from revati.profile.host_logs import (
    Array,
    Run,
    frontend_batches,
    joined_requests,
    kind_of_update,
    kinds,
    lock_free,
    phase_costs,
    step_features,
)
from revati.profile.regression import least_absolute_relative

LONGEST_SUBMIT_S = 0.5e-3  # a client that took longer for a request did something else, too
LONGEST_WAY_S = 0.6e-3  # of a message that nothing holds up
MOST_LAYERS_QUEUED = 48  # deeper models fill the launch queue, and then an execute phase waits for the GPU


@dataclass
class Samples:
    """Observations of one phase and kind: cost in µs, features, and the moment."""

    cost_us: list[Array] = field(default_factory=list)
    features: list[Array] = field(default_factory=list)  # each (n, 5): 1, requests, tokens, prefills, layers
    slowdown: list[Array] = field(default_factory=list)

    def add(self, cost_us: Array, features: Array, slowdown: Array) -> None:
        keep = np.isfinite(cost_us) & (cost_us > 0)
        self.cost_us.append(cost_us[keep])
        self.features.append(features[keep])
        self.slowdown.append(slowdown[keep])

    def extend(self, others: Samples) -> None:
        """Add those of another run."""
        self.cost_us += others.cost_us
        self.features += others.features
        self.slowdown += others.slowdown


def set_slowdowns(runs: list[Run], reference: list[Run]) -> None:
    """Estimate each half second's slowdown from phases that depend on the batch alone.

    Schedule, sample and update of full-graph decode steps (of all steps where nothing else ran) cost the
    same in every engine; the reference runs' median is 1.
    """

    def observed(run: Run) -> tuple[Array, Array, Array]:
        costs, kind = phase_costs(run), kinds(run)
        total = costs["schedule"] + costs["sample"] + costs["update"]
        use = np.isin(kind, ("full", "eager")) & (run.steps["prefill_requests"] == 0) & np.isfinite(total)
        use &= run.steps["scheduled_requests"] <= 256
        return total[use], run.steps["scheduled_requests"][use], run.windows[use]

    parts = [observed(run) for run in reference]
    total = np.concatenate([p[0] for p in parts])
    requests = np.concatenate([p[1] for p in parts])
    features = np.stack([np.ones(len(requests)), requests], axis=1)
    model = least_absolute_relative(features, total)
    for run in runs:
        cost, batch, windows = observed(run)
        ratio = cost / (model[0] + model[1] * batch)
        known = {
            int(w): float(np.median(ratio[windows == w]))
            for w in np.unique(windows)
            if (windows == w).sum() >= 5
        }
        # A window without enough decode steps has the slowdown of the nearest one that has.
        keys = np.array(sorted(known))
        run.slowdowns = {
            int(w): known[int(keys[np.argmin(np.abs(keys - w))])] for w in range(int(run.windows.max()) + 1)
        }


def collect(runs: list[Run], chunk_us: float = 0.0) -> dict[tuple[str, str], Samples]:
    """Gather the observations of every engine phase and kind from single-GPU runs.

    Args:
        chunk_us: what of launches each chunk of Python's frame stack was at slowdown 1, which is left out.
    """
    samples: dict[tuple[str, str], Samples] = {}
    for run in runs:
        costs, kind = phase_costs(run), kinds(run)
        slowdown = run.slowdown_at(run.steps["input_begin_s"])
        costs["execute"] = costs["execute"] - slowdown * of_chunks_us(kind, run.steps, chunk_us)
        own, updated = step_features(run, False), step_features(run, True)
        updated_kind = kind_of_update(run, kind)
        costs["collect"] = np.where(run.steps["gpu_was_done"] == 1, costs["wake"], np.nan)
        costs["wake"] = np.where(run.steps["gpu_was_done"] == 0, costs["wake"], np.nan)
        queued = np.zeros(len(kind), np.bool_)
        if run.layers > MOST_LAYERS_QUEUED:
            queued = np.append([False], kind[:-1] == "compiled")
        for name in ("full", "piecewise", "compiled", "eager", "idle"):
            for phase, cost in costs.items():
                late = phase in ("wake", "collect", "update", "output")
                use = (updated_kind if late else kind) == name
                if phase == "execute":
                    use = use & ~queued
                features = (updated if late else own)[use]
                samples.setdefault((phase, name), Samples()).add(cost[use], features, slowdown[use])
    return samples


def message_samples(runs: list[Run]) -> dict[tuple[str, str], Samples]:
    """Gather what messages between the frontend and the engine core cost, both ways."""
    samples: dict[tuple[str, str], Samples] = {}
    for run in runs:
        rows, free = joined_requests(run), lock_free(run)
        sent, there = (np.array([row[name] for row in rows]) for name in ("sent_s", "decode_end_s"))
        undisturbed = free.covers(sent, there)
        at = {int(step): i for i, step in enumerate(run.steps["step"])}
        for row, free_way in zip(rows, undisturbed, strict=True):
            step = at.get(row["step"])
            if step is None:
                continue
            waiting = run.steps["input_begin_s"][step] < row["decode_begin_s"]
            costs = {"frontend_submit": row["sent_s"] - row["submitted_s"]} if row["alone"] else {}
            if waiting and row["alone"]:
                costs["ipc"] = row["added_begin_s"] - row["sent_s"]
                costs["input"] = run.steps["step_begin_s"][step] - row["added_begin_s"]
            elif not waiting:
                if row["alone"] and free_way:
                    costs["ipc"] = row["decode_end_s"] - row["sent_s"]
                costs["input"] = row["added_end_s"] - row["added_begin_s"]
            kind = "idle" if waiting else "busy"
            slowdown = run.slowdown_at(np.array([row["sent_s"]]))
            features = np.array([[1.0, 0.0, row["prompt_tokens"], 0.0, 0.0]])
            for phase, cost in costs.items():
                if phase == "input" and waiting and run.steps["added_requests"][step] != 1:
                    continue
                samples.setdefault((phase, kind), Samples()).add(np.array([cost * 1e6]), features, slowdown)
        for phase, cost, batch, time_s in frontend_batches(run):
            features = np.zeros((len(cost), 5))
            features[:, 0], features[:, 1] = 1.0, batch
            samples.setdefault((phase, "any"), Samples()).add(cost, features, run.slowdown_at(time_s))
        behind = sent[1:] < there[:-1] - LONGEST_WAY_S
        followed = {
            ("frontend_submit", "busy"): (
                sent,
                back_to_back(sent, np.array([row["arrival_s"] for row in rows])),
            ),
            ("unpack", "any"): (there, behind & free.covers(there[:-1], there[1:])),
        }
        prompt_tokens = np.array([row["prompt_tokens"] for row in rows])[1:]
        for key, (times_s, use) in followed.items():
            features = np.zeros((int(use.sum()), 5))
            features[:, 0], features[:, 2] = 1.0, prompt_tokens[use]
            samples.setdefault(key, Samples()).add(
                np.diff(times_s)[use] * 1e6, features, run.slowdown_at(times_s[1:][use])
            )
    return samples


def back_to_back(sent_s: Array, arrival_s: Array) -> npt.NDArray[np.bool_]:
    """Whether a request was due when the one before it was sent, and followed at once; for all but the first.

    Args:
        sent_s: in the order of sending.
    """
    due: npt.NDArray[np.bool_] = arrival_s[1:] <= sent_s[:-1]
    return due & (np.diff(sent_s) < LONGEST_SUBMIT_S)
