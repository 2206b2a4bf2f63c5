"""Products beside a broadcast that waits: measured ratios, between them, and what nobody measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from revati import paths
from revati.interception.core import LaunchKey, LaunchType
from revati.interception.gpu import load_gpu
from revati.timing import KernelTimer
from revati.timing.attach import LaunchPricing
from revati.timing.crowding import Crowded, CrowdingModel
from tests.doubles.core import ResolverCore
from tests.timing.database import LLAMA7B, SHAPE, row, write

MODEL = CrowdingModel(
    [
        Crowded("bfloat16", n=1000, m=100, alone_us=10.0, beside_us=9.8),
        Crowded("bfloat16", n=1000, m=200, alone_us=10.0, beside_us=15.0),
        Crowded("bfloat16", n=4000, m=100, alone_us=10.0, beside_us=12.0),
    ]
)


def test_a_measured_width_is_answered_along_its_tokens() -> None:
    assert MODEL.ratio(200, 1000, "bfloat16") == pytest.approx(1.5)
    assert MODEL.ratio(150, 1000, "bfloat16") == pytest.approx(1.25)
    assert MODEL.ratio(9000, 1000, "bfloat16") == pytest.approx(1.5)


def test_nothing_gets_faster_beside_a_broadcast() -> None:
    assert MODEL.ratio(100, 1000, "bfloat16") == 1.0


def test_a_width_in_between_is_answered_by_results_of_the_same_size() -> None:
    """100 of 2000 are as much as 200 of 1000 and 50 of 4000."""
    assert MODEL.ratio(100, 2000, "bfloat16") == pytest.approx((1.5 + 1.2) / 2)


def test_half_precision_is_like_bfloat16() -> None:
    assert MODEL.ratio(200, 1000, "float16") == pytest.approx(1.5)


def test_a_data_type_that_nobody_measured_is_left_alone() -> None:
    assert MODEL.ratio(200, 1000, "float8_e4m3") == 1.0


def test_the_database_has_each_product_alone_and_beside_a_broadcast(tmp_path: Path) -> None:
    product = {"kind": "gemm", "kernel": "k", "dtype": "bfloat16", "m": 64, "n": 512, "k": 512}
    crowded = product | {"kind": "crowded", "kernel": "gemm"}
    write(
        tmp_path,
        [
            row(**product, median_us=8.0),
            row(**crowded, variant="alone", median_us=10.0),
            row(**crowded, variant="broadcast", median_us=13.0),
        ],
    )
    found = KernelTimer(tmp_path, "h200", SHAPE).gemm(64, 512, 512, "bfloat16", "bfloat16")
    assert (found.duration_us, found.crowded) == (8.0, pytest.approx(1.3))


def test_long_prefills_lose_less_than_a_tenth_in_bf16_and_most_of_it_in_fp8() -> None:
    timer = KernelTimer(paths.kernel_db_dir(), "h200", LLAMA7B)
    bf16 = timer.gemm(8192, 12288, 4096, "bfloat16", "bfloat16").crowded
    fp8 = timer.gemm(8192, 12288, 4096, "float8_e4m3", "bfloat16").crowded
    assert 1.02 < bf16 < 1.10
    assert 1.5 < fp8 < 1.9


def test_only_broadcasts_crowd_and_only_products_are_crowded() -> None:
    core = ResolverCore()
    timer = KernelTimer(paths.kernel_db_dir(), "h200", LLAMA7B)
    LaunchPricing(core, timer, load_gpu("h200"))  # type: ignore[arg-type]
    product = LaunchKey(name=b"bf16>bf16:TN", type=LaunchType.GEMM, m=8192, n=12288, k=4096, batch=1)
    copy = LaunchKey(name=b"d2d", type=LaunchType.COPY, bytes=1 << 20)
    assert core.price(product).crowded > 0
    assert core.price(copy).crowded == 0
    for name, crowds in ((b"broadcast", 1), (b"all_reduce", 0), (b"recv", 0)):
        key = LaunchKey(name=name, type=LaunchType.COLLECTIVE, bytes=1 << 10, ranks=2)
        assert core.price(key).crowds == crowds
