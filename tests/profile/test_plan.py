"""What is measured first, where a curve is measured next, and what a second look says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from revati import paths
from revati.profile.__main__ import main
from revati.profile.attention_batches import batches_between, first_batches
from revati.profile.check import Drift, attention_sample, check, drift, gemm_sample
from revati.profile.options import PRECISIONS, Options
from revati.profile.plan import GAIN, Known, Unit, engines_within, ordered, show, units_of, within
from revati.profile.shapes import COARSE_TOKENS, GEMM_TOKENS, lm_head_gemm, rank_shape
from revati.timing import db
from revati.timing.attention_features import Heads
from revati.timing.curve import Curve
from revati.timing.gemm import FULL_CLOCK_TOKENS, TokenCurve

EVERYTHING = Options("h200", families=("gap", "copy", "gemm", "attention", "kv_write"))


def unit(family: str, name: str, weight: float = 1.0) -> Unit:
    return Unit(family, name, list, weight)


def test_what_takes_away_most_error_for_its_time_comes_first() -> None:
    rare, common = unit("gemm", "rare", 0.1), unit("gemm", "common")
    assert ordered([rare, unit("kv_write", "x"), common])[0] is common
    planned = units_of(EVERYTHING, Known())
    names = [one.name for one in planned if one.family == "gemm"]
    assert names[0] == "llama7b_tp1"
    assert names.index("llama13b_tp1") < names.index("llama13b_tp8")
    passes = [one.family for one in planned if one.family.startswith("gemm") and one.name == "qwen3_8b_tp1"]
    assert passes == ["gemm", "gemm_between"]


def test_a_budget_is_kept_and_a_long_unit_lets_shorter_ones_pass() -> None:
    units = [unit("gemm", "a"), unit("attention", "long"), unit("copy", "short")]
    chosen, rest = within(units, 13.0)
    assert [one.name for one in chosen] == ["a", "short"]
    assert [one.name for one in rest] == ["long"]
    assert "beyond the budget" in show(chosen, rest)
    assert "attention.long" in show(chosen, rest)


def test_what_the_database_has_is_not_planned_again() -> None:
    assert units_of(EVERYTHING, Known.of(db.read(paths.kernel_db_dir(), "h200"))) == []
    shapes = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32000, 4096))
    first_pass = Known(tokens={(*shape, "bfloat16"): frozenset(COARSE_TOKENS) for shape in shapes})
    units = {(one.family, one.name) for one in units_of(EVERYTHING, first_pass)}
    assert ("gemm", "llama7b_tp1") not in units
    assert {("gemm_between", "llama7b_tp1"), ("gemm", "llama31_8b_tp1"), ("attention", "q32_kv32")} <= units


def test_heads_are_measured_at_the_batches_that_they_lack() -> None:
    options = replace(EVERYTHING, families=("attention",), models=("llama7b",), tensor_parallel=(1, 2))
    one, two = (Heads.of_rank(rank_shape("llama7b", tp)) for tp in (1, 2))
    known = Known(batches={one: frozenset(first_batches()), two: frozenset(batches_between()[1:])})
    units = {(unit.family, unit.name) for unit in units_of(options, known)}
    second = ("attention_between", "q16_kv16")
    assert units == {("attention_between", "q32_kv32"), ("attention", "q16_kv16"), second}
    measured = Known(
        batches={heads: frozenset([*first_batches(), *batches_between()]) for heads in (one, two)}
    )
    assert units_of(options, measured) == []


def test_the_plan_is_shown_without_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gpu=new", f"out={tmp_path}", "plan=yes", "budget_minutes=1", "families=gemm"]) == 0
    shown = capsys.readouterr().out
    assert "plan: 15 units in about 60 s" in shown
    assert "beyond the budget" in shown
    assert not list(tmp_path.iterdir())


def test_another_precision_is_planned_on_its_own() -> None:
    options = replace(
        EVERYTHING,
        families=("engine", "gemm"),
        precisions=("bf16", "fp8"),
        models=("llama7b",),
        tensor_parallel=(1,),
    )
    with_fp8 = db.read(paths.kernel_db_dir(), "h100")
    dtype, kind = (with_fp8[name].cast(pa.string()) for name in ("dtype", "kind"))
    other = pc.and_(pc.not_equal(pc.fill_null(dtype, ""), PRECISIONS["fp8"]), pc.not_equal(kind, "quant"))
    everything_but_fp8 = Known.of(with_fp8.filter(other))
    assert engines_within(options, everything_but_fp8) == ("fp8",)
    units = {(one.family, one.name) for one in units_of(options, everything_but_fp8)}
    assert units == {("gemm", "llama7b_tp1_fp8"), ("gemm_between", "llama7b_tp1_fp8")}
    assert engines_within(options, Known.of(with_fp8)) == ()
    assert not [one for one in units_of(options, Known.of(with_fp8)) if "fp8" in one.name]


def test_the_first_pass_leaves_a_small_error_between_its_tokens() -> None:
    """On the H100's own curves, interpolated at the tokens of the second pass."""
    curves: dict[tuple[int, int], dict[int, float]] = {}
    measured = db.read(paths.kernel_db_dir(), "h100")
    for row in db.rows(measured, ["m", "n", "k", "median_us"], kind="gemm", dtype=PRECISIONS["bf16"]):
        curves.setdefault((row["n"], row["k"]), {})[row["m"]] = row["median_us"]
    missed = total = 0.0
    for own in curves.values():
        if not set(GEMM_TOKENS) <= set(own):
            continue
        coarse = TokenCurve(Curve.from_points([(m, own[m]) for m in COARSE_TOKENS]))
        for m in (m for m in GEMM_TOKENS if m not in COARSE_TOKENS and m <= FULL_CLOCK_TOKENS):
            missed += abs(coarse.estimate(m).duration_us - own[m])
            total += own[m]
    without, remaining = GAIN["gemm"][1:]
    assert total > 0
    assert missed / total < 2 * remaining < without
    assert len(COARSE_TOKENS) < len(GEMM_TOKENS) / 2


def test_drift_compares_equal_keys() -> None:
    found = drift("gemm", {1: 10.0, 2: 20.0, 3: 5.0}, [(1, 11.0), (2, 22.0), (9, 1.0)])
    assert (found.points, found.median) == (2, pytest.approx(0.1))
    assert not found.ok
    assert "measure it again" in str(found)
    assert Drift("gemm", 3, -0.01, 0.2).ok
    with pytest.raises(ValueError, match="nothing measured again"):
        drift("gemm", {1: 1.0}, [(2, 1.0)])


def test_a_sample_spans_small_and_large() -> None:
    measured = db.read(paths.kernel_db_dir(), "h200")
    gemms = gemm_sample(measured, seed=1)
    assert len(gemms) == 6
    for tokens in gemms.values():
        assert len(set(tokens)) == 5
        assert min(tokens) <= 256
        assert max(tokens) >= 256
    assert gemms == gemm_sample(measured, seed=1)
    assert gemms != gemm_sample(measured, seed=2)
    for rows in attention_sample(measured, seed=1).values():
        assert rows[-1]["median_us"] > 5 * rows[0]["median_us"]


def test_the_check_measures_what_it_sampled() -> None:
    measured = db.read(paths.kernel_db_dir(), "h200")
    gemms: dict[tuple[int, int, int], float] = {}
    for row in db.rows(measured, ["m", "n", "k", "median_us"], kind="gemm", dtype="bfloat16"):
        gemms[row["m"], row["n"], row["k"]] = row["median_us"]
    heads = {
        lm_head_gemm(rank_shape(model, tp)) for model in paths.conf_names("model") for tp in (1, 2, 4, 8)
    }

    def slower_gemms(
        tokens: dict[tuple[int, int], list[int]], dtype: str, outside_graphs: set[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        assert dtype == "bfloat16"
        assert outside_graphs == {shape for shape in tokens if shape in heads}
        return [
            {"m": m, "n": n, "k": k, "median_us": 1.1 * gemms[m, n, k]}
            for (n, k), own in tokens.items()
            for m in own
        ]

    def same_attention(heads: Heads, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"kind": "attention"} for row in rows]

    found = {one.family: one for one in check(measured, ("gemm", "attention"), slower_gemms, same_attention)}
    assert found["gemm"].points == 30
    assert found["gemm"].median == pytest.approx(0.1, abs=0.03)
    assert not found["gemm"].ok
    assert found["attention"].points == 24
    assert (found["attention"].median, found["attention"].p90_abs) == (0.0, 0.0)
    assert check(measured, ("copy",), slower_gemms, same_attention) == []
