"""SGLang's attention, from vLLM's of the same batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from revati.timing import KernelTimer, schema
from tests.timing.database import SHAPE, row, write

DECODES = np.ones(4, dtype=np.int64), np.full(4, 100)


@pytest.fixture
def timer(tmp_path: Path) -> KernelTimer:
    shorter = [
        row(kind=schema.SGLANG_SHORTER, kernel=kernel, num_reqs=requests, median_us=us)
        | {"num_q_heads": heads, "num_kv_heads": kv_heads}
        for kernel, heads, kv_heads, requests, us in (
            ("attention", 4, 4, 2, 0.6),
            ("attention", 4, 4, 2, 0.4),
            ("attention", 4, 4, 6, 0.1),
            ("attention", 64, 64, 4, 0.0),
            ("attention", 4, 16, 4, 0.0),
            ("combine", 4, 4, 4, 1000.0),
        )
    ]
    write(tmp_path, shorter)
    return KernelTimer(tmp_path, "h200", SHAPE)


def test_its_decodes_take_less_than_vllms(timer: KernelTimer) -> None:
    (main, combine), (theirs, their_combine) = (timer.attention(*DECODES, use) for use in ("sglang", "eager"))
    assert theirs.duration_us - main.duration_us == pytest.approx(0.3)
    assert combine.duration_us == pytest.approx(their_combine.duration_us / 2), "never less than half"
    assert main.provenance == theirs.provenance


def test_prompts_take_as_long_as_vllms(timer: KernelTimer) -> None:
    prompt = np.array([100]), np.array([100])
    assert timer.attention(*prompt, "sglang") == timer.attention(*prompt, "eager")


def test_nothing_is_known_of_a_gpu_that_nobody_compared(tmp_path: Path) -> None:
    write(tmp_path, [row(kind="copy", kernel="copy", variant="h2d", nbytes=4, median_us=1.0)])
    timer = KernelTimer(tmp_path, "h200", SHAPE)
    assert timer.attention(*DECODES, "sglang") == timer.attention(*DECODES, "eager")
