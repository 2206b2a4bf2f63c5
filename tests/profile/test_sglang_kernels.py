"""Rows of the kernel database from SGLang's scenes."""

from __future__ import annotations

import numpy as np
import pytest

from revati import paths
from revati.profile.sglang_kernels import LEAST_STEPS, all_reduces, shorter_attention
from revati.profile.shapes import rank_shape
from revati.timing import KernelTimer

MAIN = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<x> > >(y)"
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


def test_attention_is_compared_step_by_step() -> None:
    timer = KernelTimer(paths.kernel_db_dir(), "h200", rank_shape("llama13b", 1))
    contexts = [100 + i for i in range(LEAST_STEPS)]
    steps = [
        {"scene": scene, "step": i, "mode": mode, "query_lens": [1], "context_lens": [context]}
        for i, context in enumerate(contexts)
        for scene, mode in (("decode_1_tp0_pp0", "DECODE"), ("prefill_64_tp0_pp0", "DECODE"))
    ]
    steps.append({"scene": "decode_1_tp0_pp0", "step": 90, "mode": "DECODE", "query_lens": [1, 1]})
    steps[-1]["context_lens"] = [5, 5]  # only once
    events = []
    for step in steps:
        batch = np.array(step["query_lens"]), np.array(step["context_lens"])
        took_us = timer.attention(*batch, "eager")[0].duration_us - 2.0
        layers_us = took_us - 9.0, took_us, took_us + 1.0
        events += [{"kind": "kernel", "name": MAIN, "dur_us": layer_us, **step} for layer_us in layers_us]
    (of, differs), *others = shorter_attention(events, steps, timer).items()
    assert (of, others) == (("attention", 1), [])
    assert differs == pytest.approx([2.0] * LEAST_STEPS)
