"""Newer releases of the engines than the measured ones start and serve, and say that nobody compared them.

Each gets an environment of its own, by uv, which must be there (8 GB, from uv's cache where that is on the
same disk), vLLM's with Python 3.12.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from revati.environments import MEASURED, REQUIREMENTS

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]


def make_environment(folder: Path, python: str, *packages: str) -> Path:
    """Its interpreter."""
    interpreter = folder / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--python", python, folder], check=True)
    subprocess.run(["uv", "pip", "install", "-q", "--python", interpreter, *packages], check=True)
    return interpreter


def serve(
    python: Path | str, engine: str, out: Path, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, float], str]:
    """Metrics of 40 requests, and what was said."""
    what = [f"engine={engine}", "+model=llama7b", "workload.num_requests=40"]
    done = subprocess.run(
        [python, "-m", "revati.emulate", *what, f"output_dir={out}"],
        cwd=PROJECT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())["metrics"]
    return metrics, done.stdout + done.stderr


def assert_alike(newer: dict[str, float], measured: dict[str, float]) -> None:
    for name in ("tpot_ms_p50", "e2e_ms_p50"):
        assert newer[name] == pytest.approx(measured[name], rel=0.1)


def unmeasured(engine: str, release: str) -> str:
    return f"{engine} {release}: its kernels and host costs were measured with {MEASURED[engine]}"


@pytest.mark.parametrize("release", ["0.27.1", "0.30.0", "0.32.0", "0.33.0"])
def test_a_newer_vllm_serves(tmp_path: Path, release: str) -> None:
    # Beside the CUDA bindings of the newest releases, uv takes a cuda-python that has others of its own.
    packages = (f"vllm=={release}", "cuda-python>=13", "-e", str(PROJECT))
    python = make_environment(tmp_path / "environment", "3.12", *packages)
    newer, said = serve(python, "vllm", tmp_path / "newer")
    measured, _ = serve(sys.executable, "vllm", tmp_path / "measured")
    assert unmeasured("vllm", release) in said
    assert_alike(newer, measured)


@pytest.mark.parametrize("release", ["0.5.23"])
def test_a_newer_sglang_serves(tmp_path: Path, release: str) -> None:
    _, *others = REQUIREMENTS["sglang"]
    make_environment(tmp_path / "environment", sys.executable, f"sglang=={release}", *others)
    environment = {"REVATI_SGLANG_ENV": str(tmp_path / "environment")}
    newer, said = serve(sys.executable, "sglang", tmp_path / "newer", environment)
    measured, _ = serve(sys.executable, "sglang", tmp_path / "measured")
    assert unmeasured("sglang", release) in said
    assert_alike(newer, measured)
