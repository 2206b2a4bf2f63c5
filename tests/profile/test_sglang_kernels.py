"""Rows of the kernel database from SGLang's scenes."""

from __future__ import annotations

from revati.profile.sglang_kernels import all_reduces

REDUCE = "void sglang::cross_device_reduce_1stage<__nv_bfloat16, 2>(...)"


def event(
    name: str, ts_us: float, dur_us: float, rank: int, step: int = 0, grid_x: int = 36
) -> dict[str, object]:
    scene = f"decode_8_tp{rank}_pp0"
    return {"name": name, "ts_us": ts_us, "dur_us": dur_us, "scene": scene, "step": step, "grid_x": grid_x}


def test_a_reduction_takes_as_long_as_the_last_ranks_kernel() -> None:
    events = [
        *(event("RMSNormKernel", 0.0, 2.0, rank, grid_x=8) for rank in (0, 1)),
        event(REDUCE, 1.0, 9.0, rank=0),  # waits for the other one
        event(REDUCE, 6.0, 4.0, rank=1),
        event(REDUCE, 20.0, 4.5, rank=0),
        event(REDUCE, 18.0, 6.5, rank=1),
        event(REDUCE, 30.0, 7.0, rank=0, step=-1),  # launched before the trace began
    ]
    assert all_reduces(events, token_bytes=10240) == {("1stage", 81920): [4.0, 4.5]}
