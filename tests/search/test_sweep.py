"""Whole sweeps through Ray Tune, on a runner that answers from a formula (tests/doubles)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.doubles import runner
from tests.search.problems import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["+model=llama7b", "host.mode=free", "workload.num_requests=20", "ray.dashboard=false"]


@pytest.fixture
def session_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sweeps of a test put what is temporary; short, for the sake of Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.doubles.sweep", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def sweep(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def assert_nothing_left(session_dir: Path, home_before: set[str]) -> None:
    """No file, no process and no shared memory of the sweep's Ray session is there any more."""
    assert list(session_dir.iterdir()) == []
    mentioning = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (
                (path / "cmdline").read_bytes()
                + (path / "environ").read_bytes()
                + (path / "maps").read_bytes()
            )
        except OSError:
            continue
        if str(session_dir).encode() in text and int(path.name) != os.getpid():
            mentioning.append((path / "comm").read_text())
    assert mentioning == []
    assert ray_files_at_home() == home_before


def ray_files_at_home() -> set[str]:
    return {path.name for path in Path.home().glob(".ray*")}


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "trials.parquet").to_pylist()
    return found


def test_a_sweep_goes_on_after_crashes_and_leaves_only_its_folder(tmp_path: Path, session_dir: Path) -> None:
    home = ray_files_at_home()
    tokens = f"[2048,{runner.DIES},{runner.CRASHES},{runner.TOO_BIG}]"
    status, out, err = sweep(
        *SMALL,
        "output_dir=out",
        "num_gpus=2",
        "knobs.tensor_parallel_size=[1,4]",
        "knobs.max_num_seqs=16",
        f"knobs.max_num_batched_tokens={tokens}",
        cwd=tmp_path,
    )
    assert status == 0, err
    folder = tmp_path / "out"
    outcomes = {
        (row["tensor_parallel_size"], row["max_num_batched_tokens"]): (row["status"], row["reason"])
        for row in rows(folder)
    }
    assert outcomes.pop((1, 2048)) == ("ok", "")
    assert outcomes.pop((1, runner.TOO_BIG)) == ("infeasible", "No available memory for the cache blocks.")
    assert outcomes.pop((1, runner.CRASHES)) == ("failed", "RuntimeError: engine core exploded")
    assert outcomes.pop((1, runner.DIES))[0] == "failed"
    assert set(outcomes.values()) == {("infeasible", "needs 4 GPUs, the budget is num_gpus=2")}
    assert "8/8]" in out
    assert out.count("starting vllm for tp=1") == 1
    assert "Recommended: trial" in out
    crashed = next(row for row in rows(folder) if row["reason"].startswith("RuntimeError"))
    assert "exploded" in (folder / "logs" / crashed["trial_id"] / "trial_error.txt").read_text()
    ok = next(row for row in rows(folder) if row["status"] == "ok")
    assert pq.read_table(folder / "requests" / f"{ok['trial_id']}.parquet").num_rows == 20
    for name in ("pareto.csv", "report.html", "recommended/launch.sh", "config/config.yaml"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "config" / "versions.json").read_text())["seed"] == 0
    assert_nothing_left(session_dir, home)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix)],
    ids=["SIGINT", "SIGTERM"],
)
def test_an_interrupted_sweep_cleans_up_and_can_be_resumed(
    tmp_path: Path, session_dir: Path, number: signal.Signals
) -> None:
    home = ray_files_at_home()
    arguments = ["knobs.tensor_parallel_size=[1,2]", "knobs.max_num_seqs=16", "search.max_concurrent=1"]
    slow = f"knobs.max_num_batched_tokens=[2048,{runner.SLOW}]"
    process = start(*SMALL, *arguments, slow, "output_dir=out", cwd=tmp_path)
    ledger = tmp_path / "out" / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while not (ledger.exists() and ledger.read_text()):
        assert time.monotonic() < deadline, "no trial finished"
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    assert list(session_dir.iterdir())
    # As a terminal does: Ray's processes and the server of engines get it, too.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "resume=" in err
    assert_nothing_left(session_dir, home)
    done = rows(tmp_path / "out")
    assert [row["status"] for row in done] == ["ok"] * len(done)
    assert done
    assert (tmp_path / "out" / "report.html").exists()

    status, out, err = sweep("resume=out", "search.num_trials=1", cwd=tmp_path)
    assert status == 0, err
    assert len(rows(tmp_path / "out")) == len(done)


def test_resume_goes_on_to_the_asked_number(tmp_path: Path) -> None:
    first = [*SMALL, "search=nsga2", "search.num_trials=3", "output_dir=out"]
    assert sweep(*first, cwd=tmp_path)[0] == 0
    assert len(rows(tmp_path / "out")) == 3
    status, out, err = sweep("resume=out", "search.num_trials=6", cwd=tmp_path)
    assert status == 0, err
    assert "6 trials, 3 of them done before" in out
    settings = [
        (r["tensor_parallel_size"], r["max_num_seqs"], r["max_num_batched_tokens"])
        for r in rows(tmp_path / "out")
    ]
    assert len(set(settings)) == len(settings) == 6

    status, _, err = sweep("resume=out", "workload.num_requests=21", cwd=tmp_path)
    assert status == 2
    assert "holds a sweep with other workload.num_requests" in err


def test_multirun_runs_a_sweep_a_job(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))
    knobs = [
        "knobs.tensor_parallel_size=1",
        "knobs.max_num_seqs=[16,64]",
        "knobs.max_num_batched_tokens=2048",
    ]
    status, _, err = sweep("-m", *SMALL[1:], *knobs, "+model=llama7b,tiny", cwd=tmp_path)
    assert status == 0, err
    folders = sorted((tmp_path / "multirun").glob("*/[0-9]"))
    assert [rows(folder)[0]["model"] for folder in folders] == ["llama7b", "tiny"]
    assert [len(rows(folder)) for folder in folders] == [2, 2]
