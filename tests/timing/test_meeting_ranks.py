"""Tensor-parallel ranks: what an all-reduce takes between products, and how long they wait for each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from revati.timing import KernelTimer
from revati.timing.curve import Curve
from revati.timing.jitter import EXPECTED_MAXIMUM, NO_JITTER, Jitter, Wait
from tests.timing.database import LAUNCH, SHAPE, row, write


class TestAllReduceBetweenProducts:
    ALONE_US = ((1024, 4.0), (4096, 5.0), (1 << 20, 9.0))

    @pytest.fixture
    def timer(self, tmp_path: Path) -> KernelTimer:
        def sums(kernel: str, ranks: int, points: Iterable[tuple[int, float]], **columns: Any) -> Any:
            common = {"kind": "collective", "kernel": kernel, "variant": "custom_1stage", "ranks": ranks}
            return [row(**common, nbytes=b, median_us=us, **columns) for b, us in points]

        products = [
            row(
                kind="gemm",
                kernel="g",
                dtype="bfloat16",
                m=8,
                n=n,
                k=k,
                median_us=9.0,
                p10_us=8.9,
                p90_us=9.1,
            )
            for n, k in ((512, 256), (256, 512))
        ]
        norm = {"kind": "norm", "kernel": "n", "dtype": "bfloat16", "grid_x": 1, **LAUNCH}
        small = row(**norm, median_us=1.0, p10_us=0.95, p90_us=1.05)
        alone = [*sums("all_reduce", 4, self.ALONE_US), *sums("all_reduce", 8, self.ALONE_US)]
        meetings = sums("meeting", 4, ((1024, 4.6), (4096, 5.2)))
        waits = sums("wait", 4, ((4096, 1.5),), m=8, n=512, k=256)
        write(tmp_path, [*products, small, *alone, *meetings, *waits])
        return KernelTimer(tmp_path, "h200", replace(SHAPE, tp=4))

    @pytest.mark.parametrize(("nbytes", "longer_us"), [(1024, 0.6), (2560, 0.4), (4096, 0.2), (1 << 20, 0.2)])
    def test_it_takes_longer_than_alone(self, timer: KernelTimer, nbytes: int, longer_us: float) -> None:
        alone = Curve.from_points(list(self.ALONE_US)).estimate(nbytes, "collective")
        found = timer.collective("all_reduce", nbytes, 4, "custom_1stage")
        assert found.duration_us == pytest.approx(alone.duration_us + longer_us)
        assert found.provenance == alone.provenance
        of_eight = timer.collective("all_reduce", nbytes, 8, "custom_1stage")  # alone only
        assert of_eight.duration_us == pytest.approx(found.duration_us)
        assert of_eight.provenance == "extrapolated"

    def test_ranks_wait_as_long_as_was_seen(self, timer: KernelTimer) -> None:
        up, down = (timer.gemm(8, n, k, "bfloat16", "bfloat16").std_us for n, k in ((512, 256), (256, 512)))
        assert EXPECTED_MAXIMUM[4] * math.hypot(up, down) == pytest.approx(1.5, rel=1e-3)


def test_jitter_is_the_spread_of_repeats_where_no_wait_was_seen() -> None:
    spread = Jitter(0.1, 0.5)
    assert spread.as_waited([]) == spread
    std_us = 0.1 * 2 * math.sqrt(2)  # two kernels of 4 us
    seen = [Wait(2, factor * EXPECTED_MAXIMUM[2] * std_us, (4.0, 4.0)) for factor in (1.0, 2.0, 90.0)]
    assert spread.as_waited(seen) == Jitter(0.2, 0.5)
    assert NO_JITTER.as_waited(seen) == NO_JITTER
