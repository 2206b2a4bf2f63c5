"""What a measured SGLang engine logged: turns of its event loop, of ranks the slowest, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from revati.profile.host_logs import behind_long_prefills
from revati.profile.host_samples import Samples

Array = npt.NDArray[np.float64]
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
