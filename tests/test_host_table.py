"""Host tables: the linear model, its levels, and the fit that makes them."""

import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from revati.virtual_time.host import IDLE_STEP, StagePhase, StepShape, TableHost
from revati.virtual_time.host_table import KINDS, PHASES, HostTable, base_of, known_tables, name_for
from revati.virtual_time.spread import factors

PHASE = {
    "execute": {
        "full": {"base_us": 100.0, "per_request_us": 2.0, "per_prefill_us": 5.0, "per_layer_us": 1.0}
    },
    "ipc": {
        "idle": {"latency_us": 700.0, "per_token_us": 0.1},
        "busy": {"latency_us": 400.0, "per_token_us": 0.1},
    },
}


def table(slowdown: float = 1.0) -> HostTable:
    return HostTable("t", PHASE, slowdown, {"execute": {"any": {2: 1.2, 4: 1.5}}})


def test_costs_are_linear_in_the_batch() -> None:
    assert table().phase_us("execute", "full", 10, 999, 3, 32) == pytest.approx(100 + 20 + 15 + 32)


def test_slowdown_scales_work_but_not_latency() -> None:
    assert table(2.0).phase_us("execute", "full", 10) == pytest.approx(240)
    assert table(2.0).phase_us("ipc", "idle", num_tokens=1000) == pytest.approx(700 + 2 * 100)


def test_chunks_of_the_frame_stack_cost_as_much_in_any_step() -> None:
    words = {"engine_core_words": 800, "worker_words": 200}
    slow = HostTable("t", PHASE, 2.0, frame_chunks={"us": 10.0, **words})
    assert slow.frame_chunks is not None
    assert slow.frame_chunks.engine_core_words == 800
    host, plain = TableHost(slow, 1, 1), TableHost(table(2.0), 1, 1)
    steps = [StepShape("full", 1, frame_chunks=chunks) for chunks in (0, 3)]
    without, with_chunks = (host.phase_ns("execute", step) for step in steps)
    assert with_chunks == (without or 0) + 3 * 2 * 10_000
    assert plain.phase_ns("execute", steps[1]) == without, "a part of its phases"


def test_a_table_may_replace_single_kinds_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "slowdown: 1.0\nphases: {execute: {full: {base_us: 1.0}, eager: {base_us: 2.0}}}\n"
    )
    (tmp_path / "own.yaml").write_text("base: base\nphases: {execute: {eager: {base_us: 5.0}}}\n")
    own = HostTable.load("own", tmp_path)
    assert [own.phase_us("execute", kind) for kind in ("full", "eager")] == [1.0, 5.0]


@pytest.mark.parametrize(("ranks", "factor"), [(1, 1.0), (2, 1.2), (3, 1.2), (4, 1.5), (8, 1.5)])
def test_ranks_wait_for_the_slowest(ranks: int, factor: float) -> None:
    assert table().phase_us("execute", "full", tp=ranks) == pytest.approx(100 * factor)
    assert table().phase_us("ipc", "idle", tp=ranks) == pytest.approx(700)


def test_a_kind_that_was_not_visited_takes_the_nearest() -> None:
    assert table().phase_us("execute", "any") == table().phase_us("execute", "full")
    assert table().phase_us("ipc", "piecewise") == table().phase_us("ipc", "busy") == pytest.approx(400)


@pytest.mark.parametrize(
    ("phase", "kind", "message"),
    [
        ("exec", "full", "unknown host phase 'exec'; known: input, schedule"),
        ("execute", "graph", "unknown kind 'graph'.*known: full, piecewise"),
        ("update", "full", "no costs for phase 'update'; it has execute, ipc"),
    ],
)
def test_errors_teach(phase: str, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table().phase_us(phase, kind)


def test_unknown_tables_and_levels_name_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown host table 'b200'; known: .*h200_xeon"):
        HostTable.load("b200")
    (tmp_path / "a.yaml").write_text("phases: {}\nslowdowns: {quiet: 1.0}\nlevel: loud\n")
    with pytest.raises(ValueError, match="level 'loud' is none of quiet"):
        HostTable.load("a", tmp_path)
    (tmp_path / "a.yaml").write_text("phases: {}\nslowdown: 0\n")
    with pytest.raises(ValueError, match="greater than 0"):
        HostTable.load("a", tmp_path)
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds 'phases'"):
        HostTable.load("a", tmp_path)


def test_a_based_table_changes_only_the_slowdown() -> None:
    typical, quiet = HostTable.load("h200_xeon"), HostTable.load("h200_xeon_quiet")
    assert quiet.slowdown < typical.slowdown
    ratio = quiet.slowdown / typical.slowdown
    for kind in ("full", "piecewise", "compiled"):
        costs = [t.phase_us("execute", kind, 16, 100, 2, 32) for t in (typical, quiet)]
        assert costs[1] == pytest.approx(ratio * costs[0])


def test_a_phase_and_kind_may_have_a_slowdown_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: h200_xeon\nslowdown: 2\nslowdown_of: {execute: {full: 3}}\n")
    one, table = HostTable.load("h200_xeon", slowdown=1.0), HostTable.load(str(own))
    for phase, kind, slowdown in (("execute", "full", 3), ("execute", "piecewise", 2), ("update", "full", 2)):
        expected = slowdown * one.phase_us(phase, kind, 16, 100, 2, 32)
        assert table.phase_us(phase, kind, 16, 100, 2, 32) == pytest.approx(expected)
    own.write_text("base: h200_xeon\nslowdown: 2\nslowdown_of: {execute: {any: 3, full: 4}}\n")
    for kind, slowdown in (("full", 4), ("piecewise", 3)):
        found = HostTable.load(str(own)).phase_us("execute", kind, 16, 100, 2, 32)
        assert found == pytest.approx(slowdown * one.phase_us("execute", kind, 16, 100, 2, 32))
    own.write_text("base: h200_xeon\nslowdown: 2\nslowdown_of: {launch: {full: 3}}\n")
    with pytest.raises(ValueError, match="unknown phase 'launch'"):
        HostTable.load(str(own))


def test_factors_follow_the_level_of_a_table_and_of_those_based_on_it(tmp_path: Path) -> None:
    base, own, loud = tmp_path / "base.yaml", tmp_path / "own.yaml", tmp_path / "loud.yaml"
    base.write_text(
        "phases: {execute: {full: {base_us: 100}, eager: {base_us: 1000}}, update: {full: {base_us: 10}}}\n"
        "slowdown: 1\npipeline: {execute: {full: {base_us: 80}}}\n"
    )
    own.write_text(
        f"base: {base}\nslowdown: null\nslowdowns: {{low: 2, high: 4}}\nlevel: low\n"
        "factor_of: {execute: {eager: 0.5, any: 0.9}}\npipeline_slowdown: 1.6\n"
    )
    loud.write_text(f"base: {own}\nlevel: high\n")
    for path, slowdown in ((own, 2), (loud, 4)):
        table = HostTable.load(str(path))
        assert [table.phase_us("execute", kind) for kind in ("full", "eager")] == pytest.approx(
            [0.9 * slowdown * 100, 0.5 * slowdown * 1000]
        )
        assert table.phase_us("update", "full") == slowdown * 10
        # Stages were measured elsewhere: by factors on that machine's slowdown.
        stages = HostTable.load(str(path), pipelined=True)
        assert stages.phase_us("execute", "full") == pytest.approx(slowdown * 80 / 1.6)
    assert base_of(str(loud)) == str(base)
    own.write_text(f"base: {base}\nfactor_of: {{launch: {{full: 3}}}}\n")
    with pytest.raises(ValueError, match="unknown phase 'launch'"):
        HostTable.load(str(own))


def test_engines_have_tables_of_their_own_but_a_file_is_taken_as_it_is() -> None:
    names = [name_for(*given) for given in (("x", "vllm"), ("x", "sglang"), ("/a/x.yaml", "sglang"))]
    assert names == ["x", "x_sglang", "/a/x.yaml"]


@pytest.mark.parametrize("name", known_tables())
def test_shipped_tables_cover_every_phase_of_every_kind(name: str) -> None:
    shipped = HostTable.load(name)
    phases = set(PHASES) - set(get_args(StagePhase)) - {"broadcast"}  # vLLM's ranks have one scheduler
    if name.endswith("_sglang"):  # no phases of workers and of sampling; messages count as the engine's work
        phases = set(shipped.phases) - {"ipc", "unpack", "output_ipc"}
    for phase in phases:
        for kind in KINDS:
            cost = shipped.phase_us(phase, kind, 8, 100, 1, 32, 2)
            assert 0 < cost < 100_000, (phase, kind)


def test_a_pipeline_has_costs_of_its_own_where_its_stages_have_schedulers() -> None:
    one, stages = (HostTable.load("h200_xeon_sglang", pipelined=pipelined) for pipelined in (False, True))
    assert stages.own_schedulers
    assert not one.own_schedulers
    for phase in get_args(StagePhase):
        assert 0 < stages.phase_us(phase) < 2000
        with pytest.raises(ValueError, match=f"no costs for phase '{phase}'"):
            one.phase_us(phase)
    # A prefill without graphs launches every kernel of every layer.
    assert stages.phase_us("execute", "eager", 1, 100, 1, 10) > 5 * stages.phase_us("execute", "full", 1)
    assert TableHost(stages, 10, 1, pp=4).phase_ns("schedule", IDLE_STEP) == pytest.approx(
        1e3 * stages.phase_us("schedule", "idle"), abs=1
    )
    assert not HostTable.load("h200_xeon", pipelined=True).own_schedulers


def test_shipped_table_knows_what_launching_costs() -> None:
    shipped = HostTable.load("h200_xeon")
    full, piecewise, compiled = (
        shipped.phase_us("execute", kind, 1, 100, 1, 32) for kind in ("full", "piecewise", "compiled")
    )
    assert full < piecewise < compiled
    assert shipped.phase_us("schedule", "full", 256) > 5 * shipped.phase_us("schedule", "full", 8)


def test_a_look_up_is_fast() -> None:
    shipped = HostTable.load("h200_xeon")
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(1000):
            shipped.phase_us("execute", "full", 12, 0, 0, 32, 2)
        best = min(best, time.perf_counter() - begin)
    assert best / 1000 < 5e-6


def test_the_fit_finds_known_coefficients_despite_outliers() -> None:
    pytest.importorskip("scipy")
    from revati.profile.regression import least_absolute_relative

    rng = np.random.default_rng(3)
    requests = rng.integers(1, 300, 800).astype(float)
    layers = rng.choice([8.0, 32.0, 80.0], 800)
    cost = (50 + 3 * requests + 10 * layers) * rng.lognormal(0, 0.1, 800)
    cost[::15] *= 8  # a wait for the GPU now and then
    features = np.stack([np.ones(800), requests, layers], axis=1)
    assert least_absolute_relative(features, cost) == pytest.approx([50, 3, 10], rel=0.2)


@pytest.mark.parametrize("shift_us", [300.0, 0.0, 0.04, -250.0])
def test_a_clients_lateness_is_drawn_as_it_was_measured(shift_us: float) -> None:
    """Timers may be early, or on time in the middle."""
    pytest.importorskip("scipy")
    from revati.profile.host_fit import lateness

    arrival = lateness(shift_us + np.linspace(-100, 300, 401) - 100)
    drawn_us = arrival["latency_us"] * np.array(factors(arrival["spread"], positive=False))
    quantiles_us = np.quantile(drawn_us, [0.1, 0.5, 0.9])
    assert quantiles_us == pytest.approx(shift_us + np.array([-160, 0, 160]), abs=2)


def test_draws_lie_between_the_quantiles_that_they_are_made_of() -> None:
    drawn = np.array(factors([0.8, 1.0, 1.6]))
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx([0.8, 1.0, 1.6], abs=0.02)
    assert np.all(np.diff(drawn) >= 0)
    assert min(factors([0.1, 1.0, 1.6])) > 0
    assert min(factors([-1.3, 1.0, 3.3], positive=False)) < -1.3


def test_a_host_stalls_in_its_share_of_the_draws() -> None:
    drawn = np.array(factors([0.8, 1.0, 1.6, 0.05, 4.0]))
    assert len(drawn) == len(factors([0.8, 1.0, 1.6]))
    stalls = round(0.05 * len(drawn))
    usual, stalled = drawn[:-stalls], drawn[-stalls:]
    assert np.quantile(usual, [0.1, 0.5, 0.9]) == pytest.approx([0.8, 1.0, 1.6], abs=0.02)
    assert np.mean(stalled) == pytest.approx(4.0)
    # Of what is distributed exponentially, the median is ln 2 of the mean.
    assert np.median(stalled - 1.0) == pytest.approx(np.log(2) * 3.0, rel=0.1)
    assert factors([0.8, 1.0, 1.6, 0.001, 4.0]) == factors([0.8, 1.0, 1.6])


def test_a_seed_draws_the_same_costs_again() -> None:
    def costs(seed: int | None) -> list[int | None]:
        host = TableHost(HostTable.load("h200_xeon"), num_layers=32, tp=1, seed=seed)
        return [host.phase_ns("execute", StepShape("full", 8)) for _ in range(200)]

    assert costs(0) == costs(0)
    assert costs(0) != costs(1)
    assert len(set(costs(None))) == 1
    assert np.mean(costs(0)) == pytest.approx(
        np.mean(HostTable.load("h200_xeon").spread["execute", "full"].factors) * costs(None)[0], rel=0.05
    )


COMMON = {1: 0.1, 24: 0.3, 150: 0.2}


def varying(
    common: dict[int, float], dispatched: bool = False, tp: int = 1, seed: int = 3
) -> dict[str, np.ndarray]:
    """By phase what each of many steps costs on a host whose phases all have the same spread."""
    entry = {"base_us": 100.0, "spread": [0.8, 1.0, 1.3, 0.02, 5.0]}
    names = ["schedule", "execute", "wake", *(["dispatch"] if dispatched else [])]
    table = HostTable("test", {name: {"any": dict(entry)} for name in names}, in_common=common)
    host = TableHost(table, num_layers=1, tp=tp, seed=seed)
    drawn = [[host.phase_ns(name, StepShape("full", 8)) for name in names] for _ in range(20_000)]
    return dict(zip(names, np.array(drawn, np.float64).T, strict=True))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    usual = (a < 3e5) & (b < 3e5)  # without stalls
    return float(np.corrcoef(np.argsort(np.argsort(a[usual])), np.argsort(np.argsort(b[usual])))[0, 1])


def test_phases_of_a_process_vary_together_and_for_some_steps() -> None:
    cost = varying(COMMON)
    schedule, execute = cost["schedule"], cost["execute"]
    assert correlation(schedule, execute) == pytest.approx(0.6, abs=0.06)
    assert correlation(schedule[10:], schedule[:-10]) == pytest.approx(0.36, abs=0.06)
    assert correlation(schedule[300:], schedule[:-300]) == pytest.approx(0.0, abs=0.06)
    assert correlation(schedule, cost["wake"]) == pytest.approx(0.0, abs=0.03), "not of every step"


def test_an_odd_seed_is_slow_where_the_even_one_before_is_fast() -> None:
    even, odd, next_one = (varying(COMMON, seed=seed)["execute"] for seed in (4, 5, 6))
    assert correlation(even, odd) == pytest.approx(-0.6, abs=0.06)
    assert correlation(odd, next_one) == pytest.approx(0.0, abs=0.06)


def test_what_is_in_common_changes_neither_the_spread_nor_stalls() -> None:
    apart, together = varying({})["execute"], varying(COMMON)["execute"]
    assert np.quantile(together, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(apart, [0.1, 0.5, 0.9]), rel=0.04
    )
    stalled = together > 3e5
    assert stalled.mean() == pytest.approx((apart > 3e5).mean(), rel=0.15)
    assert (stalled[1:] & stalled[:-1]).sum() < 0.1 * stalled.sum(), "they come at any time"
    assert correlation(apart[1:], apart[:-1]) == pytest.approx(0.0, abs=0.03)


def test_workers_in_processes_of_their_own_have_nothing_in_common_with_the_core() -> None:
    alone, ranks = varying(COMMON, dispatched=True), varying(COMMON, dispatched=True, tp=2)
    assert correlation(alone["schedule"], alone["execute"]) > 0.5
    assert correlation(ranks["schedule"], ranks["execute"]) == pytest.approx(0.0, abs=0.06)
    assert correlation(ranks["schedule"], ranks["dispatch"]) > 0.5
