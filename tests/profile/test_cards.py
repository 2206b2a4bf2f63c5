"""Measurements of several cards become one row a kernel: the median card's times."""

from pathlib import Path

import pytest

from revati.profile import cards
from revati.timing import db
from revati.timing.schema import rows_to_table


def row(m: int, us: float, at: str, **more: object) -> dict[str, object]:
    return {
        "kind": "gemm",
        "kernel": "nvjet",
        "dtype": "bfloat16",
        "m": m,
        "n": 4096,
        "k": 4096,
        "count": 5,
        "median_us": us,
        "p10_us": us - 0.1,
        "p90_us": us + 0.3,
        "method": "cupti",
        "measured_at": at,
        "driver": "580",
        "libraries": "torch=2.11.0",
    } | more


def test_the_median_card_stays_with_its_repeats() -> None:
    joined = cards.median_card([[row(8, 10.0, "a")], [row(8, 90.0, "b")], [row(8, 11.0, "c")]])
    assert [(one["median_us"], one["count"], one["measured_at"]) for one in joined] == [(11.0, 5, "c")]
    assert joined[0]["p90_us"] - joined[0]["p10_us"] == pytest.approx(0.4)


def test_a_card_that_measured_twice_counts_once() -> None:
    joined = cards.median_card(
        [[row(8, 10.0, "a"), row(8, 10.2, "a")], [row(8, 20.0, "b")], [row(8, 30.0, "c")]]
    )
    assert [one["median_us"] for one in joined] == [20.0]


def test_other_kernels_and_sizes_stay_apart() -> None:
    joined = cards.median_card([[row(8, 10.0, "a"), row(16, 12.0, "a")], [row(8, 14.0, "b", kernel="other")]])
    assert [(one["m"], one["kernel"], one["median_us"]) for one in joined] == [
        (8, "nvjet", 10.0),
        (16, "nvjet", 12.0),
        (8, "other", 14.0),
    ]


def test_databases_are_joined_family_by_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, us in (("one", 10.0), ("two", 12.0), ("three", 13.0)):
        db.write(rows_to_table([row(8, us, name)]), tmp_path / name / "gpu=h300" / "gemm.parquet")
    copy = row(8, 1.0, "two", kind="copy", variant="h2d", n=None, k=None, nbytes=64)
    db.write(rows_to_table([copy]), tmp_path / "two" / "gpu=h300" / "copy.parquet")
    databases = [str(tmp_path / name) for name in ("one", "two", "three")]
    assert cards.main(["gpu=h300", f"out={tmp_path / 'joined'}", *databases]) == 0
    found = db.read(tmp_path / "joined", "h300").to_pylist()
    assert sorted((one["kind"], one["median_us"]) for one in found) == [("copy", 1.0), ("gemm", 12.0)]
    assert "gemm.parquet: 3 rows of 3 cards, 1 left" in capsys.readouterr().out


def test_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cards.main(["gpu=h300"]) == 2
    assert "usage" in capsys.readouterr().err
