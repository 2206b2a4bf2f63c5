"""Steps of logs and of emulated timelines, brought to one form."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from revati.validate.steps import compare, emulated_steps, measured_steps
from revati.validate.workers import emulated_calls, measured_calls

STEP_US = 5000.0


def log(count: int, *, requests: int = 8, prefills: int = 0, tokens: int | None = None) -> pa.Table:
    """Back-to-back steps: 100 schedule, 1000 execute, 500 sample, 3300 wait, 60 update, 40 rest (µs)."""
    begin = np.arange(count) * STEP_US
    at = {
        "schedule_begin_s": begin,
        "schedule_end_s": begin + 100,
        "execute_begin_s": begin + 100,
        "execute_end_s": begin + 1100,
        "sample_end_s": begin + 1600,
        "update_begin_s": begin + 4900,
        "update_end_s": begin + 4960,
        "step_end_s": begin + 4990,
    }
    counts = {
        "scheduled_tokens": requests if tokens is None else tokens,
        "scheduled_requests": requests,
        "prefill_requests": prefills,
    }
    columns = {name: times / 1e6 for name, times in at.items()}
    return pa.table(columns | {name: np.full(count, value) for name, value in counts.items()})


def timeline(count: int, slower: float = 1.0) -> pa.Table:
    """The same steps as an emulation records them."""
    lengths = {"schedule": 100, "execute": 1000, "sample": 500, "wait": 3280, "collect": 20, "update": 60}
    rows = []
    for step in range(count):
        at = step * STEP_US * slower
        for phase, length in lengths.items():
            rows.append({"phase": phase, "begin_us": at, "end_us": at + length * slower})
            at += length * slower
        rows.append({"phase": "output", "begin_us": at, "end_us": at + 40 * slower})
    shape = {"core": "engine_core", "kind": "full", "requests": 8, "prompt_tokens": 0, "prefills": 0}
    return pa.Table.from_pylist([row | shape for row in rows])


def test_both_forms_say_the_same() -> None:
    measured, emulated = measured_steps(log(20), eager=False), emulated_steps(timeline(20))
    assert measured.kind.tolist() == emulated.kind.tolist() == ["full"] * 20
    assert measured.size.tolist() == emulated.size.tolist() == [8] * 20
    for name, expected in (
        ("schedule", 100),
        ("execute", 1000),
        ("sample", 500),
        ("wait", 3300),
        ("update", 60),
    ):
        assert measured.cost_us[name] == pytest.approx(np.full(20, expected))
        assert emulated.cost_us[name] == pytest.approx(np.full(20, expected))
    for name in ("gpu", "period"):
        assert measured.cost_us[name][:-1] == pytest.approx(np.full(19, STEP_US))
        assert emulated.cost_us[name][:-1] == pytest.approx(np.full(19, STEP_US))
        assert np.isnan(measured.cost_us[name][-1])


@pytest.mark.parametrize(
    ("given", "eager", "kind", "size"),
    [
        ({"requests": 600}, False, "compiled", 600),
        ({"requests": 9, "prefills": 1, "tokens": 300}, False, "piecewise", 300),
        ({"requests": 9, "prefills": 1, "tokens": 700}, False, "compiled", 700),
        ({"requests": 9}, True, "eager", 9),
    ],
)
def test_kinds_follow_from_the_batch(given: dict[str, int], eager: bool, kind: str, size: int) -> None:
    steps = measured_steps(log(1, **given), eager=eager)
    assert (steps.kind.tolist(), steps.size.tolist()) == ([kind], [size])


def test_a_recorded_graph_mode_is_believed() -> None:
    table = log(2).append_column("graph", pa.array(["PIECEWISE", "NONE"]))
    assert measured_steps(table, eager=False).kind.tolist() == ["piecewise", "compiled"]


def test_idle_time_is_no_period_and_an_unwaited_step_shows_no_gpu_time() -> None:
    table = log(4)
    late = {name: np.asarray(table[name]).copy() for name in table.column_names}
    for name, values in late.items():
        if name.endswith("_s"):
            values[2:] += 1.0  # a second of silence after the second step
    late["sample_end_s"][0] = late["update_begin_s"][0]  # the first step found its outputs there
    steps = measured_steps(pa.table(late), eager=False)
    assert np.isnan(steps.cost_us["period"]).tolist() == [False, True, False, True]
    assert np.isnan(steps.cost_us["gpu"]).tolist() == [True, True, False, True]


def test_empty_steps_are_dropped() -> None:
    assert len(measured_steps(log(3, tokens=0), eager=False).kind) == 0


def test_comparison_shows_errors_by_kind_and_size() -> None:
    page = compare(measured_steps(log(20), eager=False), emulated_steps(timeline(20, slower=1.1)))
    header, _, row = (line.split("|")[1:-1] for line in page.splitlines())
    cells = dict(zip(map(str.strip, header), map(str.strip, row), strict=False))
    assert (cells["kind"], cells["size"], cells["steps"], cells["emulated"]) == ("full", "5–16", "20", "20")
    assert cells["host"] == "1660"
    assert [cell.strip() for cell in row][5] == "+10.0"


def with_worker(count: int) -> pa.Table:
    """The timeline of an engine core that dispatches, and of the worker that executes and samples."""
    rows = timeline(count).to_pylist()
    dispatched = {"execute": "dispatch", "sample": "dispatch_sample"}
    worker = [row | {"core": "worker_0"} for row in rows if row["phase"] in dispatched]
    return pa.Table.from_pylist(
        [row | {"phase": dispatched.get(row["phase"], row["phase"])} for row in rows] + worker
    )


def test_dispatching_is_the_engine_cores_part_of_executing() -> None:
    steps = emulated_steps(with_worker(20))
    assert steps.cost_us["execute"] == pytest.approx(np.full(20, 1000))


def test_workers_of_their_own_are_compared_by_the_slowest_rank() -> None:
    assert emulated_calls(timeline(20)) is None, "the worker is in the engine core"
    emulated = emulated_calls(with_worker(20))
    assert emulated
    call = {"scheduled_tokens": 8, "scheduled_requests": 8, "most_tokens": 1, "sample_us": 500.0}
    calls = [call | {"rank": rank, "execute_us": 900.0 + 100 * rank} for rank in (0, 1) for _ in range(20)]
    measured = measured_calls(pa.Table.from_pylist(calls), tensor_parallel=2, eager=False, largest_graph=512)
    assert measured.cost_us["execute"] == pytest.approx(np.full(20, 1000))
    row = compare(measured, emulated, ("execute", "sample")).splitlines()[-1]
    assert row == "| full | 5–16 | 20 | 20 | 1000 | +0.0 | 500 | +0.0 |"
    stages = measured_calls(pa.Table.from_pylist(calls), tensor_parallel=1, eager=False, largest_graph=512)
    assert len(stages.kind) == 40, "pipeline stages count each"


def test_unknown_costs_are_dashes() -> None:
    page = compare(measured_steps(log(7), eager=False), emulated_steps(timeline(5)))
    assert "–" in page, "too few periods"
