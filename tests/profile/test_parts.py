"""Resuming, and the log of sessions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from revati.profile.parts import Parts, summary
from revati.profile.session import FILE, Session
from revati.timing import db


def row(m: int) -> dict[str, Any]:
    return {"kind": "gemm", "kernel": "g", "m": m, "n": 8, "k": 8, "method": "cupti", **summary([1.0, 2.0])}


def test_a_finished_unit_is_not_measured_again(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path, "mine")
    assert parts.run("gemm", "a", lambda: [row(1), row(2)]) == 2
    assert parts.run("gemm", "a", lambda: pytest.fail("measured twice")) == 0
    assert parts.merge("gemm") == 2
    assert parts.merge("attention") == 0


def test_earlier_sessions_stay_in_the_merged_file(tmp_path: Path) -> None:
    first = Parts.open(tmp_path, "mine")
    first.run("gemm", "a", lambda: [row(1)])
    first.merge("gemm")
    for path in (first.folder / "parts").iterdir():  # as in a checkout, which has no parts
        path.unlink()
    second = Parts.open(tmp_path, "mine")
    second.run("gemm", "b", lambda: [row(2)])
    assert second.merge("gemm") == 2
    assert sorted(db.read(tmp_path, "mine")["m"].to_pylist()) == [1, 2]


def test_a_session_says_when_and_in_which_state(tmp_path: Path) -> None:
    session = Session(tmp_path, {"measured_at": "2026-01-01T00:00Z", "driver": "1"})
    session.log("gemm.a", time.monotonic() - 2.0, rows=5)
    session.log("check", time.monotonic(), drift=["none"])
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["unit"] for line in lines] == ["gemm.a", "check"]
    assert (lines[0]["driver"], lines[0]["rows"]) == ("1", 5)
    assert lines[0]["seconds"] == pytest.approx(2.0, abs=0.5)
    assert "gpu_after" in lines[0]
