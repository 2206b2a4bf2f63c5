"""What a run says of its kernels, and the power that they draw."""

from __future__ import annotations

import pytest

from revati.interception.gpu import load_gpu
from revati.timing.estimate import Estimate
from revati.timing.power import demand
from revati.timing.usage import LaunchLog, Usage


def test_launches_are_counted_by_what_is_known_of_them() -> None:
    log = LaunchLog()
    gemm = log.add("gemm bf16", "m=1", Estimate(10.0, "measured", 0.02, "gemm"))
    strange = log.add("nobody_knows", "grid (1, 1, 1)", Estimate(5.0, "roofline", 0.5, "elementwise"))
    unused = log.add("unused", "", Estimate(5.0, "extrapolated", 0.2, "norm"))
    attention = {
        log.add("attention", "by batch", Estimate(us, "interpolated", 0.1, "attention")) for us in (1.0, 2.0)
    }
    assert sorted({gemm, strange, unused, *attention}) == [0, 1, 2, 3]
    usage = log.usage([600_000, 200_000, 0, 200_000], [60, 40, 0, 20])
    assert usage.columns() == pytest.approx(
        {
            "gpu_time_share_measured": 0.6,
            "gpu_time_share_interpolated": 0.2,
            "gpu_time_share_extrapolated": 0.0,
            "gpu_time_share_roofline": 0.2,
            "gpu_time_rel_std": 0.6 * 0.02 + 0.2 * 0.5 + 0.2 * 0.1,
            "unseen_kernels": 1,
        }
    )
    rows = usage.table().to_pylist()
    assert [row["name"] for row in rows] == ["gemm bf16", "nobody_knows", "attention"]
    assert rows[2] == {
        "name": "attention",
        "kind": "attention",
        "shape": "by batch",
        "launches": 20,
        "gpu_time_us": 200.0,
        "duration_us": 10.0,
        "provenance": "interpolated",
        "rel_std": 0.1,
    }


def test_tables_of_several_runs_add_up() -> None:
    log = LaunchLog()
    log.add("gemm bf16", "m=1", Estimate(10.0, "measured", 0.02, "gemm"))
    log.add("nobody_knows", "grid (1, 1, 1)", Estimate(5.0, "roofline", 0.5, "elementwise"))
    one, other = log.usage([600_000, 0], [60, 0]), log.usage([200_000, 200_000], [20, 40])
    both = log.usage([800_000, 200_000], [80, 40])
    merged = Usage.of_tables([one.table(), other.table()])
    assert merged.columns() == pytest.approx(both.columns())
    assert merged.table().to_pylist() == both.table().to_pylist()


def test_a_run_without_launches_has_no_shares() -> None:
    usage = LaunchLog().usage([], [])
    assert set(usage.columns().values()) == {0}
    assert usage.table().num_rows == 0


def test_a_kernel_near_the_peak_draws_more_and_follows_the_clock() -> None:
    gpu = load_gpu("h200")

    def gemm(share: float, dtype: str = "bfloat16") -> tuple[float, float]:
        tflops = gpu.bf16_tflops if dtype == "bfloat16" else gpu.fp8_tflops
        flops = share * tflops * 1e12 * 1e-3  # in a millisecond
        return demand(gpu, Estimate(1000.0, "measured", 0.0, "gemm", flops, 0.0, dtype=dtype))

    busy, light = gemm(0.8), gemm(0.1)
    assert busy[0] > gpu.power.limit_w > light[0] > gpu.power.idle_w
    assert busy[1] > light[1] > 0
    quantised = gemm(0.1, "float8_e4m3")
    assert quantised[0] == pytest.approx(gpu.power.idle_w + 0.1 * gpu.power.fp8_flops_w)  # of its own peak
    assert 0 < quantised[1] < light[1]
    beyond = Estimate(1.0, "roofline", 0.0, "attention", 1e15, 1e15)  # no kernel draws more than the peak
    assert demand(gpu, beyond) == gpu.power.attention(1.0, 1.0)


def test_small_kernels_follow_the_clock_and_moves_do_not() -> None:
    gpu = load_gpu("h200")

    def sensitivity(kind: str) -> float:
        return demand(gpu, Estimate(3.0, "measured", 0.0, kind))[1]

    def watts(kind: str, us: float = 300.0) -> float:
        return demand(gpu, Estimate(us, "measured", 0.0, kind))[0]

    assert 1 > sensitivity("quant") > sensitivity("norm") == sensitivity("kv_write") > 0
    assert sensitivity("copy") == sensitivity("memset") == sensitivity("collective") == 0
    assert watts("norm") > watts("copy") == watts("collective") > gpu.power.idle_w
    assert watts("norm") > watts("norm", us=3.0) > watts("norm", us=2.0) == gpu.power.idle_w
