"""SGLang's turns: what validation reads of them, and the host table that they calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from revati.engines.sglang import step_log
from revati.profile.truth.pack import turns as packed
from revati.validate import turns
from revati.validate.calibration import calibrated
from revati.validate.runs import read_cases
from revati.virtual_time.host_table import HostTable

from .conftest import AddRun

TABLE = HostTable.load("h200_xeon_sglang", slowdown=1.0)
TURN_S = 0.01
LAYERS = 32
RECEIVE_US = 50.0  # of a turn of a lone rank, before it schedules
AHEAD = 0.5  # a rank that is not the slowest of a turn takes so much of its time, and waits for it
WAIT_US = 700.0


def write_log(folder: Path, slowdown: float, count: int = 240, ranks: int = 1) -> None:
    """Decode turns of 1 to 16 requests, each phase `slowdown` times as long as the table says on the rank
    that is the slowest: another one each turn."""
    logs = []
    for rank in range(ranks):
        rows: list[dict[str, Any]] = []
        for turn in range(count):
            requests, processed = 1 + turn % 16, 1 + (turn - 1) % 16

            slowest, waited = turn % ranks == rank, (turn - 1) % ranks != rank
            factor = slowdown * (1.0 if slowest else AHEAD)

            def us(phase: str, reqs: int, factor: float = factor) -> float:
                return factor * TABLE.phase_us(phase, "full", reqs, num_layers=LAYERS, tp=ranks)

            begin = 1e6 * TURN_S * turn
            receive_us = us("broadcast", 0, slowdown) if ranks > 1 else RECEIVE_US
            received = begin + receive_us
            at = {"recv_begin": begin - WAIT_US * waited, "recv_end": received, "input_end": received}
            at["schedule_begin"] = received
            at["schedule_end"] = received + us("schedule", requests) - (receive_us if ranks == 1 else 0)
            at["run_begin"] = at["schedule_end"]
            at["run_end"] = at["run_begin"] + us("execute", requests)
            if turn:
                at["process_begin"] = at["run_end"]
                at["wake"] = begin + 8000
                at["process_end"] = at["wake"] + us("update", processed)
                at["end"] = at["process_end"] + us("output", processed)
            else:
                at["end"] = at["run_end"]
            row = step_log._empty_row(turn) | {f"{name}_s": 1e-6 * time for name, time in at.items()}
            row |= {"requests": requests, "tokens": requests, "mode": "DECODE", "graph": 1}
            if turn:
                row |= {"processed_requests": processed, "processed_mode": "DECODE"}
                row |= {"launched_step": turn - 1, "gpu_was_done": 0}
            rows.append(row)
        logs.append(folder / f"steps_tp{rank}_pp0.parquet")
        pq.write_table(step_log.steps_table(rows), logs[-1])
    pq.write_table(packed(logs), folder / "steps.parquet")


def add(
    add_run: AddRun, name: str, slowdown: float, ranks: int = 1, stages: int = 1, start_s: float = 1.0
) -> Path:
    engine = {"engine": "sglang", "engine_args": {}, "num_layers": LAYERS, "engine_start_s": start_s}
    folder = add_run(name, **engine, tensor_parallel_size=ranks, pipeline_parallel_size=stages)
    write_log(folder, slowdown, ranks=ranks)
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_case_is_calibrated_on_the_other_runs_of_all_its_engines(
    measured: Path, add_run: AddRun, tmp_path: Path, ranks: int
) -> None:
    add(add_run, "own", 9.0, ranks)
    add(add_run, "own_rep2", 9.0, ranks, start_s=2.0)
    add(add_run, "other", 1.2, ranks)
    add(add_run, "other_rep2", 1.4, ranks, start_s=2.0)
    add(add_run, "of_a_third_engine", 5.0, ranks, start_s=3.0)
    case = next(case for case in read_cases([measured]) if case.name == "own")
    found = calibrated(case, "h200_xeon_contended", tmp_path)
    assert found is not None
    assert (found.base, list(found.runs)) == ("h200_xeon_sglang", ["other", "other_rep2"])
    table = HostTable.load(str(found.path))
    tolerances = {"schedule": 0.01, "execute": 0.01, "update": 0.01, "output": 0.05}
    if ranks > 1:
        tolerances["broadcast"] = 0.01
    for phase, tolerance in tolerances.items():
        mean = fmean(table.spread[phase, "full"].factors) * table.phase_us(
            phase, "full", 8, num_layers=LAYERS
        )
        expected = 1.3 * TABLE.phase_us(phase, "full", 8, num_layers=LAYERS)
        assert mean == pytest.approx(expected, rel=tolerance), phase  # times are whole µs


def test_steps_are_the_turns_of_the_slowest_rank(add_run: AddRun) -> None:
    folder = add(add_run, "own", 1.0, ranks=2)
    log = turns.read(folder, json.loads((folder / "run.json").read_text()))
    assert log
    steps = turns.steps(log)
    assert set(steps.kind) == {"full"}
    assert steps.size.tolist() == [1 + turn % 16 for turn in range(240)]
    expected = TABLE.phase_us("execute", "full", 8, num_layers=LAYERS, tp=2)
    assert steps.cost_us["execute"][7] == pytest.approx(expected, abs=1.5)
    assert steps.cost_us["sample"].tolist() == [0.0] * 240
    assert steps.cost_us["gpu"][2:-1] == pytest.approx(np.full(237, 1e6 * TURN_S))


def test_turns_of_a_pipeline_tell_no_costs(measured: Path, add_run: AddRun) -> None:
    folder = add(add_run, "other", 1.0, stages=4)
    assert turns.read(folder, json.loads((folder / "run.json").read_text())) is None
