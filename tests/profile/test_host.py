"""``host=NAME``: runs what has no logs yet, and fits a table to what ran to its end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from revati.profile import host, host_fit
from revati.profile.options import HostOptions


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("run.json", "steps.parquet", "requests.parquet"):
        (folder / name).touch()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What was started, instead of engines on a GPU; each engine but llama13b finishes."""
    made: dict[str, list[list[str]]] = {"engines": [], "fits": []}

    def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        names = command[command.index("--engine") + 1 :]
        made["engines"].append(names)
        for name in names:
            if name != "llama13b":
                finish(Path(command[command.index("--out") + 1]) / name)
        return subprocess.CompletedProcess(command, 1 if "llama13b" in names else 0)

    def fit(arguments: list[str]) -> int:
        made["fits"].append(arguments)
        return 0

    monkeypatch.setattr(host.subprocess, "run", run)
    monkeypatch.setattr(host_fit, "main", fit)
    return made


def test_engines_with_logs_are_not_run_again(tmp_path: Path, calls: dict[str, Any]) -> None:
    finish(tmp_path / "llama7b")
    options = HostOptions("mine", ("llama7b", "llama7b_eager"), tmp_path)
    assert host.calibrate(options) == 0
    assert calls["engines"] == [["llama7b_eager"]]
    assert host.calibrate(options) == 0
    assert len(calls["engines"]) == 1
    (arguments, _) = calls["fits"]
    assert arguments[:3] == ["--runs", str(tmp_path / "llama7b"), str(tmp_path / "llama7b_eager")]
    assert arguments[-1].endswith("conf/host/mine.yaml")


def test_a_failed_engine_is_left_out_and_shows_in_the_status(tmp_path: Path, calls: dict[str, Any]) -> None:
    assert host.calibrate(HostOptions("mine", ("llama7b", "llama13b"), tmp_path)) == 1
    assert str(tmp_path / "llama13b") not in calls["fits"][0]
    assert host.calibrate(HostOptions("mine", ("llama13b",), tmp_path / "empty")) == 1
    assert len(calls["fits"]) == 1


def test_unknown_engines_are_refused(capsys: pytest.CaptureFixture[str], calls: dict[str, Any]) -> None:
    assert host.calibrate(HostOptions("mine", ("nope",))) == 2
    assert "unknown nope; accepted: gqa_80layers, llama13b" in capsys.readouterr().err
    assert calls["engines"] == []
