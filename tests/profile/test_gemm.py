"""In which order products are measured."""

from __future__ import annotations

import pytest

from revati.profile import gemm


def test_the_longest_products_come_last_since_they_lower_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[gemm.Point] = []

    def launch(plan: list[gemm.Point], dtype: str) -> list[gemm.Row]:
        launched.extend(plan)
        return []

    monkeypatch.setattr(gemm, "_launched", launch)
    gemm.measure({(4096, 4096): [16384, 600], (8192, 4096): [600, 1024]})
    assert [m for m, _, _ in launched] == [600, 600, 1024, 16384]
