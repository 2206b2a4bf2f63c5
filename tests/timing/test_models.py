"""Curves, trees and the held-out report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from revati.timing.curve import Curve
from revati.timing.families import family, without_number
from revati.timing.forest import Forest
from revati.timing.report import left_out_points, weighted
from revati.timing.trees import Trees


def test_curve_averages_repeated_points_and_needs_one() -> None:
    assert Curve.from_points([(1, 2.0), (1, 4.0)]).duration_us == (3.0,)
    with pytest.raises(ValueError, match="at least one point"):
        Curve.from_points([])


def test_curve_never_falls_beyond_its_end() -> None:
    falling = Curve.from_points([(1, 5.0), (8, 4.0), (16, 3.0)])
    assert falling.estimate(64, "k").duration_us == 3.0


def test_left_out_points_of_a_line_are_exact() -> None:
    held = left_out_points([(float(x), 3.0 + x) for x in range(1, 9)])
    assert [(at, us) for at, _, us in held] == [(float(x), 3.0 + x) for x in range(2, 8)]
    assert weighted(held) == pytest.approx(0.0)


def test_left_out_points_show_a_step() -> None:
    held = left_out_points([(1.0, 1.0), (2.0, 1.0), (3.0, 4.0), (4.0, 4.0)])
    assert [guess for _, guess, _ in held] == pytest.approx([2.5, 2.5])
    assert weighted(held) == pytest.approx((1.5 + 1.5) / (1.0 + 4.0))


def test_exported_trees_predict_what_scikit_learn_predicts(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from revati.profile.fit import export, regressor

    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 5))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    model = regressor("combine").fit(x, y)
    trees = export(model)
    assert [trees.predict(row) for row in x[:50]] == pytest.approx(list(model.predict(x[:50])))
    trees.save(tmp_path / "t.parquet", {"why": "test"})
    loaded, facts = Trees.load(tmp_path / "t.parquet")
    assert facts["why"] == "test"
    assert loaded.predict(x[0]) == trees.predict(x[0])


def test_a_forest_answers_what_each_of_its_sets_of_trees_answers() -> None:
    pytest.importorskip("sklearn")
    from revati.profile.fit import export, regressor

    draw = np.random.default_rng(1)
    x = draw.normal(size=(500, 4)).round(1)  # many values equal to a threshold's neighbours
    sets = [
        export(regressor(kind).fit(x, y))
        for kind, y in (("attention", np.sin(3 * x[:, 0]) * x[:, 1]), ("combine", x[:, 2] ** 2))
    ]
    forest = Forest(sets, x.shape[1])
    at_thresholds = [np.full(4, threshold) for threshold in np.unique(sets[0].threshold)[:50]]
    for row in [*x[:100], *at_thresholds]:
        expected = [trees.predict(row) for trees in sets]
        assert forest.predict(row.tolist()) == pytest.approx(expected, rel=1e-12)


def test_a_forest_refuses_trees_that_are_too_wide() -> None:
    leaves = 40
    inner = np.arange(leaves - 1)  # a comb: node i's left child is leaf i, its right one the next inner node
    nodes = np.arange(2 * leaves - 1)
    left, right = nodes.copy(), nodes.copy()
    left[inner], right[inner] = leaves - 1 + inner, inner + 1
    right[leaves - 2] = 2 * leaves - 2
    comb = Trees(
        np.zeros(1, dtype=np.intp), np.zeros_like(nodes), nodes * 1.0, left, right, nodes * 1.0, 0.0, leaves
    )
    with pytest.raises(ValueError, match="more than 31 leaves"):
        Forest([comb], 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_red_fused_fused_add_rms_norm_2", "norm"),
        ("triton_red_fused__to_copy_embedding_rms_norm_0", "embedding"),
        ("triton_poi_fused_mul_silu_slice_1", "activation"),
        ("triton_poi_fused_add_cat_index_select_mul_split_split_with_sizes_sub_unsqueeze_view_3", "rope"),
        ("void vllm::reshape_and_cache_flash_kernel<x, y, (vllm::Fp8KVCacheDataType)0>(z)", "kv_write"),
        ("triton_red_fused__to_copy_abs_clamp_cutlass_scaled_mm_div_max_mul_silu_slice_2", "quant"),
        ("void marlin::Marlin<x>(y)", "gemm"),
        ("nvjet_sm90_tst_128x8_64x12_4x1_v_bz_TNT", "gemm"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(x)", "collective"),
        ("_gumbel_sample_kernel", "sampling"),
        ("memcpy32_post", "elementwise"),
    ],
)
def test_family(name: str, kind: str) -> None:
    assert family(name) == kind


def test_names_lose_what_does_not_tell_the_work() -> None:
    assert without_number("triton_poi_fused_mul_silu_slice_12") == "triton_poi_fused_mul_silu_slice"
    assert without_number("void f<int, (A)0>(int, B)") == "f<int,(A)0>"
    assert without_number("void (anonymous namespace)::g<int>(int)") == "(anonymousnamespace)::g<int>"
