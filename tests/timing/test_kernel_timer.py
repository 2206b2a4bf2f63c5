"""The resolver: order of sources, provenance, and never zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from revati import paths
from revati.timing import KernelTimer, UnknownGpuError, db, schema
from revati.timing.curve import Curve
from revati.timing.gemm import STARTUP_US, GemmModel, TileCurve, TokenCurve, ideal_us
from revati.timing.gpu import load_limits
from revati.timing.launches import row_width
from tests.timing.database import LAUNCH, SHAPE, row, write


@pytest.fixture
def timer(tmp_path: Path) -> KernelTimer:
    gemms = [
        row(kind="gemm", kernel=kernel, dtype="bfloat16", m=m, n=512, k=512, median_us=us)
        for m, kernel, us in ((1, "g+sum", 4.0), (8, "g", 5.0), (16, "g", 7.0), (64, "Memset+g", 20.0))
    ]
    norms = [
        row(
            kind="norm",
            kernel="triton_red_fused_add_rms_norm_0",
            grid_x=x,
            width=512,
            median_us=us,
            **LAUNCH,
        )
        for x, us in ((1, 2.0), (64, 4.0))
    ]
    copies = [
        row(kind="copy", kernel="copy", variant="h2d", nbytes=b, median_us=us)
        for b, us in ((4, 1.0), (1024, 2.0))
    ]
    sums = [
        row(kind="collective", kernel="all_reduce", variant="nccl", ranks=2, nbytes=b, median_us=us)
        for b, us in ((1024, 5.0), (4096, 8.0))
    ]
    sums.append(
        row(
            kind="collective", kernel="all_reduce", variant="custom_1stage", ranks=2, nbytes=64, median_us=4.0
        )
    )
    gaps = [
        row(kind="gap", kernel="graph", variant=None, median_us=9.0),
        row(kind="gap", kernel="graph", variant="engine", median_us=0.25),
    ]
    write(tmp_path, [*gemms, *norms, *copies, *sums, *gaps])
    return KernelTimer(tmp_path, "h200", SHAPE)


@pytest.mark.parametrize(
    ("m", "duration_us", "provenance"),
    [
        (8, 5.0, "measured"),
        (12, 6.0, "interpolated"),
        (16, 7.0, "measured"),
        (128, 20.0 + 64 * (20.0 - 7.0) / 48, "extrapolated"),
    ],
)
def test_gemm_takes_the_best_source(timer: KernelTimer, m: int, duration_us: float, provenance: str) -> None:
    found = timer.gemm(m, 512, 512, "bfloat16", "bfloat16")
    assert found.duration_us == pytest.approx(duration_us)
    assert (found.provenance, found.kind) == (provenance, "gemm")


def test_a_poor_choice_of_kernel_says_nothing_about_its_neighbours() -> None:
    """As cuBLAS at 832 tokens: measured there, but not what 800 or 850 tokens take."""
    curve = TokenCurve(Curve((768.0, 832.0, 896.0), (50.0, 95.0, 60.0)))
    assert (curve.estimate(832).duration_us, curve.estimate(832).provenance) == (95.0, "measured")
    assert curve.estimate(850).duration_us == pytest.approx(60.0)
    on_a_line, same_row = 55.0, 60.0
    assert curve.estimate(800).duration_us == pytest.approx((on_a_line + same_row) / 2)
    assert curve.estimate(800).provenance == "interpolated"


@pytest.mark.parametrize(("m", "same_row_us"), [(600, 50.0), (700, 60.0)])
def test_a_row_of_tiles_takes_as_long_from_its_first_token_to_its_last(m: int, same_row_us: float) -> None:
    """Rows of 128 tokens end at 640 and 768: 600 shares one with 576, 700 with 704."""
    at, duration_us = (576.0, 704.0), (50.0, 60.0)
    on_a_line = 50.0 + 10.0 * (m - 576) / 128
    found = TokenCurve(Curve(at, duration_us)).estimate(m)
    assert found.duration_us == pytest.approx((on_a_line + same_row_us) / 2)


def test_gemm_of_an_unseen_shape_borrows_efficiency(timer: KernelTimer) -> None:
    one, twice = (timer.gemm(64, n, 512, "bfloat16", "bfloat16") for n in (512, 1024))
    assert twice.provenance == "extrapolated"
    assert one.duration_us < twice.duration_us < 3 * one.duration_us
    assert twice.rel_std > one.rel_std


@pytest.mark.parametrize(
    ("m", "n", "launches"),
    [(1, 512, 2), (2, 512, 1), (16, 512, 1), (17, 512, 2), (128, 512, 2), (64, 640, 2)],
)
def test_gemm_knows_how_many_launches_it_takes(timer: KernelTimer, m: int, n: int, launches: int) -> None:
    assert timer.gemm(m, n, 512, "bfloat16", "bfloat16").launches == launches


def test_gemm_of_an_unseen_dtype_ends_at_the_roofline(timer: KernelTimer) -> None:
    assert timer.gemm(8, 512, 512, "float16", "float16").provenance == "roofline"


@pytest.mark.parametrize(
    ("m", "duration_us"),
    [
        (600, 40.0 - 8.0 * (600 - 544) / 96),  # between two in the row of 513 to 768 tokens
        (530, 40.0),  # as its only neighbour in that row, though a shorter one is nearer
        (700, 32.0),
        (800, 45.0),
        (900, 45.0),
    ],
)
def test_a_row_of_cutlass_tiles_says_nothing_about_another(m: int, duration_us: float) -> None:
    curve = TileCurve(Curve((512.0, 544.0, 640.0, 832.0, 1088.0), (20.0, 40.0, 32.0, 45.0, 60.0)))
    found = curve.estimate(m)
    assert (found.duration_us, found.provenance) == (pytest.approx(duration_us), "interpolated")
    assert (curve.estimate(544).duration_us, curve.estimate(544).provenance) == (40.0, "measured")


def test_inductor_number_does_not_matter(timer: KernelTimer) -> None:
    seen, other = (
        timer.kernel(f"triton_red_fused_add_rms_norm_{i}", (64, 1, 1), (128, 1, 1), 0, 64, 64) for i in (0, 7)
    )
    assert seen == other
    assert (seen.duration_us, seen.provenance, seen.kind) == (4.0, "measured", "norm")


@pytest.mark.parametrize(
    ("name", "provenance"),
    [
        ("void (anonymous namespace)::act_and_mul_kernel<__nv_bfloat16>(int)", "measured"),
        ("void vllm::act_and_mul_kernel<c10::BFloat16>(int)", "extrapolated"),  # a block a token
    ],
)
def test_sglangs_activation_is_told_by_its_blocks(tmp_path: Path, name: str, provenance: str) -> None:
    launch = {"grid_x": 7, "block_x": 256, "grid_y": 1, "grid_z": 1}
    width = row_width(name, "activation", SHAPE)
    write(tmp_path, [row(kind="activation", kernel=name, width=width, median_us=1.6, **launch)])
    wider = KernelTimer(tmp_path, "h200", replace(SHAPE, intermediate=2 * SHAPE.intermediate))
    assert wider.kernel(name, (7, 1, 1), (256, 1, 1), 0, 1, 1).provenance == provenance


def test_kernel_between_and_beyond_measurements(timer: KernelTimer) -> None:
    def norm(tokens: int) -> tuple[float, str]:
        found = timer.kernel("triton_red_fused_add_rms_norm_0", (tokens, 1, 1), (128, 1, 1), 0, 0, 0)
        return found.duration_us, found.provenance

    assert norm(32)[1] == "interpolated"
    assert norm(4096)[1] == "extrapolated"
    assert norm(1)[0] < norm(32)[0] < norm(64)[0] <= norm(4096)[0]


@pytest.mark.parametrize("name", ["nobody_knows_this", "void f<(anonymous namespace)::g>(int)", ""])
def test_an_unknown_kernel_is_answered_and_marked(timer: KernelTimer, name: str) -> None:
    found = timer.kernel(name, (1000, 1, 1), (256, 1, 1), 0, 0, 0)
    assert found.provenance in ("extrapolated", "roofline")
    assert found.duration_us > 0
    assert found.rel_std >= 0.2


def test_copies_and_collectives(timer: KernelTimer) -> None:
    assert timer.copy("h2d", 4).provenance == "measured"
    assert 1.0 < timer.copy("h2d", 512).duration_us < 2.0
    assert timer.copy("d2d", 4096).provenance == "roofline"
    assert timer.collective("all_reduce", 1024, 2, "nccl").duration_us == 5.0
    assert timer.collective("all_reduce", 1024, 8, "nccl").provenance == "extrapolated"
    assert timer.collective("all_gather", 1024, 8, "nccl").provenance == "roofline"
    copied = timer.collective("all_reduce", 64, 2, "sglang_custom_1stage")  # from vLLM's
    assert (copied.duration_us, copied.provenance) == (4.0, "extrapolated")
    with pytest.raises(ValueError, match="h2d, d2h, d2d, memset"):
        timer.copy("sideways", 4)


def test_gap_comes_from_engine_recordings(timer: KernelTimer) -> None:
    assert timer.graph_gap_us == 0.25
    assert timer.launch_gap_us > 0


def test_gap_of_graphs_timed_as_a_whole_comes_first(tmp_path: Path) -> None:
    gaps = {schema.TIMED: [0.1, 0.2], "engine": [0.05], None: [9.0]}
    rows = [
        row(kind="gap", kernel="graph", variant=v, median_us=us) for v, found in gaps.items() for us in found
    ]
    write(tmp_path, rows)
    assert KernelTimer(tmp_path, "h200", SHAPE).graph_gap_us == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<x> > >(y)", "main"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdCombine<z> >(y)", "combine"),
        ("void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64> >(x)", "main"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64> >(x)", "main"),
        ("void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128> >(x)", "combine"),
        ("kernel_unified_attention_2d", "main"),
        ("reduce_segments", "combine"),
        ("void flash::prepare_varlen_num_blocks_kernel<1, false>(int)", None),
        ("triton_red_fused_add_rms_norm_0", None),
    ],
)
def test_is_attention(timer: KernelTimer, name: str, part: str | None) -> None:
    assert timer.is_attention(name) == part


def test_attention_without_measurements_is_a_roofline(timer: KernelTimer) -> None:
    main, combine = timer.attention(np.array([1, 100]), np.array([50, 100]))
    assert (main.provenance, combine.provenance) == ("roofline", "roofline")
    assert min(main.duration_us, combine.duration_us) > 0


def test_an_unknown_gpu_names_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, [], gpu="h200")
    write(tmp_path, [], gpu="a100")
    with pytest.raises(UnknownGpuError, match=r"'b9000'.*a100, h200"):
        KernelTimer(tmp_path, "b9000", SHAPE)


def test_a_file_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    table = schema.rows_to_table([]).replace_schema_metadata({schema.VERSION_KEY: b"999"})
    (tmp_path / "gpu=h200").mkdir()
    pq.write_table(table, tmp_path / "gpu=h200" / "all.parquet")
    with pytest.raises(schema.SchemaError, match="version 999"):
        db.read(tmp_path, "h200")


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    table = schema.rows_to_table([]).drop_columns(["median_us"])
    (tmp_path / "gpu=h200").mkdir()
    pq.write_table(table, tmp_path / "gpu=h200" / "all.parquet")
    with pytest.raises(schema.SchemaError, match="median_us"):
        db.read(tmp_path, "h200")


def test_rows_with_unknown_keys_or_kinds_are_refused() -> None:
    with pytest.raises(schema.SchemaError, match="no such column: colour"):
        schema.rows_to_table([row(kind="gemm", kernel="g", median_us=1.0, colour="red")])
    with pytest.raises(schema.SchemaError, match="unknown kind 'magic'"):
        schema.rows_to_table([row(kind="magic", kernel="g", median_us=1.0)])


@pytest.mark.parametrize("size", [1024, 16384])
def test_products_of_other_sizes_need_as_long_to_start(size: int) -> None:
    limits = load_limits(paths.conf_dir() / "gpu", "h200")

    def measured_us(m: int, n: int, k: int) -> float:
        return STARTUP_US + ideal_us(limits, m, n, k, "bfloat16") / 0.8

    shapes = [(4096, 4096), (8192, 4096), (4096, 8192), (12288, 5120)]
    points = {(n, k, "bfloat16"): [(m, measured_us(m, n, k)) for m in (1, 64)] for n, k in shapes}
    found = GemmModel(limits, points).estimate(64, size, size, "bfloat16", "bfloat16")
    assert found.duration_us == pytest.approx(measured_us(64, size, size), rel=0.01)
    assert found.provenance == "extrapolated"
