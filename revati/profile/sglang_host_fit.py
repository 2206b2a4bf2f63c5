"""Fit a host table for SGLang to the step logs of a calibration.

    python -m revati.profile.sglang_host_fit --run DIR/host_tp1 [--tensor-parallel DIR/host_tp2] --out FILE

A DIR holds one engine's logs as `sglang_runs` writes them.  Phases are those of a vLLM step, so that one
table format serves both: *schedule* is a turn of the event loop up to the launch, *execute* launches the
forward pass, sampling and the copy of the results, *update* processes the results of the step before.
Of decodes, schedule and update do not depend on how the forward pass runs, with a graph or without.  The
frontend is SGLang's tokenizer manager.  With several ranks, a turn begins with their *broadcast* instead of
a look at the sockets; a TP factor is what another phase takes on the slowest rank of each turn.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from revati.profile.host_in_common import of_decodes, shares
from revati.profile.host_model import Phases, fit, predicted
from revati.profile.host_samples import Samples, back_to_back
from revati.profile.sglang_host_logs import Array, Log, samples_of

# Begin and end of the phases that every decode has.
_STEP = (("schedule_begin_s", "run_begin_s"), ("run_begin_s", "run_end_s"), ("wake_s", "process_end_s"))
_LEAST = 5  # observations of a phase and kind
_LONGEST_WAY_US = 3000.0


def frontend_samples(log: Log) -> Samples:
    """From a turn's end, when emulated outputs leave, until the last client has its tokens."""
    steps, sample = log.steps, Samples()
    tokens = np.sort(np.array([t for request in log.requests for t in request["token_times_s"]]))
    sent_s, layers = steps["end_s"], float(log.description["num_layers"])
    rows = np.flatnonzero(np.isfinite(steps["send_end_s"]))
    for row, following in itertools.pairwise(rows):
        within = tokens[np.searchsorted(tokens, sent_s[row]) : np.searchsorted(tokens, sent_s[following])]
        if len(within) == steps["processed_requests"][row]:
            features = np.array([[1.0, float(len(within)), 0.0, 0.0, layers]])
            sample.add(np.array([(within[-1] - sent_s[row]) * 1e6]), features, np.ones(1))
    return sample


def message_way_us(steps: Mapping[str, Any], submitted_s: Array) -> float:
    """How long requests are on their way to the scheduler: what agrees best with which turn took each.

    The turn that took a request found it, and the one before didn't.

    Args:
        steps: turns with the number that they ``received`` and ``recv_begin_s``.
        submitted_s: when the clients called, of all requests that came, of shape (n,).
    """
    row = np.repeat(np.arange(len(steps["step"])), np.asarray(steps["received"], np.int64))
    count = min(len(row), len(submitted_s))
    row, sent_s = row[:count], np.sort(submitted_s)[:count]
    preceded = row > 0
    found_us = np.sort(1e6 * (steps["recv_begin_s"][row] - sent_s)[preceded])
    missed_us = np.sort(1e6 * (steps["recv_begin_s"][row - 1] - sent_s)[preceded])
    ways_us = np.arange(0.0, _LONGEST_WAY_US, 10.0)
    too_short = len(missed_us) - np.searchsorted(missed_us, ways_us)
    too_long = np.searchsorted(found_us, ways_us)
    balance = np.abs(too_short - too_long)
    return round(float(np.median(ways_us[balance == balance.min()])), 1)


def messages(log: Log) -> Phases:
    """Lags of requests: late sending to an idle engine, and the way to the scheduler.

    The clients' event loop hardly follows how slow the scheduler's process is.
    """
    late = [
        (request["submitted_s"] - request["arrival_s"]) * 1e6
        for request in log.requests
        if request["segment"] == "lone"
    ]
    submitted_s = np.array([request["submitted_s"] for request in log.requests], np.float64)
    way_us = message_way_us(log.steps, submitted_s)
    return {
        "arrival": {"any": {"latency_us": round(float(np.median(late)), 1), "samples": len(late)}},
        "frontend_submit": {"any": {"latency_us": way_us, "samples": len(submitted_s)}},
        # Parts of frontend_submit and frontend_busy: a message has no time of its own here.
        "ipc": {"any": {"latency_us": 0.0}},
        "unpack": {"any": {"latency_us": 0.0}},
        "output_ipc": {"any": {"latency_us": 0.0}},
    }


def burst_calls(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Phases:
    """What a request costs the client that sends the next one at once; nothing where none did.

    Args:
        runs: the requests of each run: ``arrival_s``, ``submitted_s`` and ``prompt_tokens``.
    """
    sample = Samples()
    for requests in runs:
        rows = sorted(requests, key=lambda request: request["submitted_s"])
        sent, due, tokens = (
            np.array([row[name] for row in rows], np.float64)
            for name in ("submitted_s", "arrival_s", "prompt_tokens")
        )
        burst = back_to_back(sent, due)
        features = np.zeros((len(rows), 5))
        features[:, 0], features[:, 2] = 1.0, tokens
        sample.add(np.diff(sent)[burst] * 1e6, features[:-1][burst], np.ones(int(burst.sum())))
    fitted = fit({("input", "busy"): sample}, least=_LEAST)  # with the terms of a message
    return {"frontend_submit": {"busy": _at_any_speed(fitted["input"]["busy"])}} if fitted else {}


def _at_any_speed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"latency_us" if name == "base_us" else name: value for name, value in entry.items()}


def tensor_parallel_factors(log: Log, phases: Phases) -> dict[str, dict[str, float]]:
    """Median ratio of each phase to what the table says for one GPU, by phase and kind."""
    factors: dict[str, dict[str, float]] = {}
    for (phase, kind), sample in samples_of(log).items():
        entry = phases.get(phase, {}).get(kind)
        if entry is None or phase == "broadcast" or not sample.cost_us:
            continue
        cost, x = np.concatenate(sample.cost_us), np.concatenate(sample.features)
        if len(cost) >= _LEAST:
            expected = predicted(entry, np.column_stack([x, np.ones(len(x))]))
            factors.setdefault(phase, {})[kind] = round(float(np.median(cost / expected)), 3)
    return factors


def _gathered(logs: list[Log]) -> dict[tuple[str, str], Samples]:
    samples: dict[tuple[str, str], Samples] = {}
    for log in logs:
        for key, found in samples_of(log).items():
            samples.setdefault(key, Samples()).extend(found)
    return samples


def _frontend(logs: list[Log]) -> dict[str, Any]:
    samples = Samples()
    for log in logs:
        samples.extend(frontend_samples(log))
    return _at_any_speed(fit({("frontend_busy", "any"): samples}, least=_LEAST)["frontend_busy"]["any"])


def together(log: Log) -> Array:
    """How the phases of a log's decode steps correlate, and the steps with each other."""
    requests, decode = log.steps["requests"], log.steps["mode"] == "DECODE"
    return of_decodes((log.us(*moments) for moments in _STEP), requests, requests > 0, decode)


def make_table(logs: list[Log], ranked: list[Log], name: str) -> dict[str, Any]:
    """The table that `HostTable` reads; messages are those of the first engine."""
    samples = _gathered(logs)
    if ranked:
        samples["broadcast", "any"] = _gathered(ranked)["broadcast", "any"]
    phases = fit(samples, least=_LEAST) | messages(logs[0]) | {"frontend_busy": {"any": _frontend(logs)}}
    for phase, busy in burst_calls([log.requests for log in logs]).items():
        phases[phase] |= busy
    for phase in ("schedule", "update"):
        phases[phase].setdefault("eager", copy.deepcopy(phases[phase]["full"]))
    # The scheduler's own thread waits, spinning: it goes on as soon as it would have found the results.
    phases["wake"] = copy.deepcopy(phases["collect"])
    parallel: dict[str, dict[str, dict[int, float]]] = {}
    for other in ranked:
        ranks = int(other.description["tensor_parallel_size"])
        for phase, by_kind in tensor_parallel_factors(other, phases).items():
            for kind, factor in by_kind.items():
                parallel.setdefault(phase, {}).setdefault(kind, {})[ranks] = factor
    return {
        "name": name,
        "slowdowns": {"typical": 1.0},
        "level": "typical",
        "in_common": shares(map(together, logs)),
        "tensor_parallel": parallel,
        "provenance": [
            {
                "recorded_at": one.description["recorded_at"],
                "host": one.description["environment"]["host"],
                "engine": f"{one.description['engine']} {one.description['engine_version']}",
                "model": one.description["model"],
                "layers": one.description["num_layers"],
                "tensor_parallel_size": one.description["tensor_parallel_size"],
                "steps": len(one.steps["step"]),
            }
            for one in (*logs, *ranked)
        ],
        "phases": phases,
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="of engines on one GPU each")
    parser.add_argument("--tensor-parallel", type=Path, nargs="*", default=[], help="of engines on several")
    parser.add_argument("--out", type=Path, required=True, help="conf/host/<name>_sglang.yaml")
    arguments = parser.parse_args(argv)
    ranked = [Log.load(folder) for folder in arguments.tensor_parallel]
    table = make_table([Log.load(folder) for folder in arguments.run], ranked, arguments.out.stem)
    arguments.out.write_text(
        "# Made by python -m revati.profile.sglang_host_fit; see revati/virtual_time/host_table.py.\n"
        + yaml.safe_dump(table, sort_keys=False, width=110, default_flow_style=None)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
