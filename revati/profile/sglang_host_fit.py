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
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml

from revati.profile.host_in_common import of_decodes, shares
from revati.profile.host_logs import behind_long_prefills
from revati.profile.host_model import Phases, fit, predicted
from revati.profile.host_samples import Samples, back_to_back

Array = npt.NDArray[np.float64]
# Begin and end of the phases that every decode has.
_STEP = (("schedule_begin_s", "run_begin_s"), ("run_begin_s", "run_end_s"), ("wake_s", "process_end_s"))
_LEAST = 5  # observations of a phase and kind
_LONGEST_WAY_US = 3000.0
# NCCL's all-reduces take over from SGLang's own above 8 MiB, at the earliest with so many tokens (of 8192
# elements).  Launches of graphs that hold them wait for the GPU.
_UNBLOCKED_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Log:
    """One engine's step log, its requests and its description."""

    steps: dict[str, Any]
    requests: list[dict[str, Any]]
    description: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Log:
        return cls(
            of_slowest_rank([_columns(path) for path in sorted(folder.glob("steps_tp*_pp0.parquet"))]),
            pq.read_table(folder / "requests.parquet").to_pylist(),
            json.loads((folder / "run.json").read_text()),
        )

    def us(self, begin: str, end: str) -> Array:
        """Time between two columns of the step log in µs."""
        result: Array = (self.steps[end] - self.steps[begin]) * 1e6
        return result

    def kinds(self, mode: str) -> npt.NDArray[np.str_]:
        """How the model ran, by the column with the step's mode."""
        graph = self.steps["graph"]
        if mode == "processed_mode":
            by_step = dict(zip(self.steps["step"], graph, strict=True))
            graph = np.array([by_step.get(step, -1) for step in self.steps["launched_step"]])
        modes = self.steps[mode]
        kind = np.where(modes == "DECODE", "full", "piecewise")
        return np.where(modes == "", "", np.where(graph == 0, "eager", kind))


def _columns(path: Path) -> dict[str, Any]:
    return {name: np.array(column) for name, column in pq.read_table(path).to_pydict().items()}


def of_slowest_rank(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turns of tensor-parallel ranks as those of one: each turn of the rank that the others waited for.

    A turn begins with a broadcast, at which all ranks meet: whoever had the most to do in the turn before
    comes last, and receives without waiting.  What is sent, only the first rank sends.

    Args:
        ranks: columns of each rank's step log; all ranks take the same turns.

    Returns:
        Columns of one log, with `begin_s`, when the first rank began the turn.

    Raises:
        ValueError: they took different turns.
    """
    first = ranks[0]
    if any(not np.array_equal(first["step"], other["step"]) for other in ranks[1:]):
        raise ValueError("the step logs of the ranks have different turns")
    slowest = np.argmax([_work_s(rank) for rank in ranks], axis=0)
    turn = np.arange(len(slowest))
    chosen = {name: np.stack([rank[name] for rank in ranks])[slowest, turn] for name in first}
    receive_s = np.min([rank["schedule_begin_s"] - rank["recv_begin_s"] for rank in ranks], axis=0)
    chosen["recv_begin_s"] = chosen["schedule_begin_s"] - receive_s
    chosen |= {name: first[name] for name in ("send_begin_s", "send_end_s")}
    return chosen | {"begin_s": first["recv_begin_s"]}


def _work_s(steps: Mapping[str, Any]) -> Array:
    """What each turn has to do between its broadcast and the next one, without waits for the GPU."""
    launch = np.nan_to_num(steps["run_end_s"] - steps["schedule_begin_s"])
    process = np.nan_to_num(steps["end_s"] - steps["wake_s"])
    work: Array = launch + process
    return work


def samples_of(log: Log) -> dict[tuple[str, str], Samples]:
    """Observed costs of each phase and kind."""
    steps = log.steps
    found: dict[tuple[str, str], Samples] = {}
    count, layers = len(steps["step"]), float(log.description["num_layers"])

    def features(requests: Array, tokens: Any = 0.0, prefills: Any = 0.0) -> Array:
        columns = (1.0, requests, tokens, prefills, layers)
        return np.column_stack([np.broadcast_to(np.asarray(c, np.float64), count) for c in columns])

    def add(phase: str, kind: npt.NDArray[np.str_], cost_us: Array, rows: Any, x: Array) -> None:
        for one in np.unique(kind[rows]):
            use = rows & (kind == one)
            sample = found.setdefault((phase, str(one)), Samples())
            sample.add(cost_us[use], x[use], np.ones(int(use.sum())))

    launched = steps["requests"] > 0
    of_step = features(steps["requests"], steps["prefill_tokens"], steps["prefill_requests"])
    receive_us = log.us("recv_begin_s", "schedule_begin_s")
    kind, any_kind = log.kinds("mode"), np.full(count, "any")
    silent_us = turn_us(log)
    decision_us = log.us("schedule_begin_s", "run_begin_s")
    ranked = int(log.description["tensor_parallel_size"]) > 1
    if ranked:
        add("broadcast", any_kind, receive_us, _silent(log), features(np.zeros(count)))
    else:
        decision_us += silent_us
    add("schedule", _scheduled(kind, steps["mode"]), decision_us, launched, of_step)
    blocked = behind_long_prefills(np.where(launched, steps["tokens"], 0))
    blocked |= ranked & (steps["graph"] == 1) & (steps["tokens"] > _UNBLOCKED_TOKENS)
    add("execute", kind, log.us("run_begin_s", "run_end_s"), launched & ~blocked, of_step)
    for one, rows, cost_us in inputs(receive_us - silent_us, steps["received"]):
        add("input", np.full(count, one), cost_us, rows, features(np.zeros(count)))
    processed = steps["processed_requests"] > 0
    of_processed = features(steps["processed_requests"])
    kind = log.kinds("processed_mode")
    done = steps["gpu_was_done"] == 1
    add("collect", any_kind, log.us("process_begin_s", "wake_s"), processed & done, of_processed)
    kind = _scheduled(kind, steps["processed_mode"])
    add("update", kind, log.us("wake_s", "process_end_s"), processed, of_processed)
    add("output", any_kind, log.us("process_end_s", "end_s"), processed, of_processed)
    return found


def _scheduled(kind: npt.NDArray[np.str_], mode: Any) -> npt.NDArray[np.str_]:
    """The kinds of steps for phases that treat all decodes alike."""
    return np.where(mode == "DECODE", "full", kind)


def inputs(new_us: Array, received: Any) -> tuple[tuple[str, Any, Array], ...]:
    """What turns tell of new requests: kind, rows and cost in µs of one.

    Kind idle is the first request of a turn, busy each further one: all come in one message list.

    Args:
        new_us: what a turn took longer than a silent one.
        received: how many messages came.
    """
    alone, several = received == 1, received > 1
    first_us = float(np.median(new_us[alone])) if alone.any() else 0.0
    further_us = np.maximum(1.0, (new_us - first_us) / np.maximum(1, received - 1))
    return ("idle", alone, new_us), ("busy", several, further_us)


def turn_us(log: Log) -> float:
    """What a turn takes before it schedules, if no message has come."""
    return float(np.median(log.us("recv_begin_s", "schedule_begin_s")[_silent(log)]))


def _silent(log: Log) -> npt.NDArray[np.bool_]:
    """The turns that launched a batch and got no message."""
    silent: npt.NDArray[np.bool_] = (log.steps["received"] == 0) & (log.steps["requests"] > 0)
    return silent


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
