"""Newer releases of vLLM than the measured one start and serve, and say that nobody compared them.

Each gets an environment of its own, with Python 3.12 and by uv, which must be there (8 GB, from uv's cache
where that is on the same disk).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from revati.environments import MEASURED

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]
SERVE = ("-m", "revati.emulate", "+model=llama7b", "workload.num_requests=40")


def serve(python: Path | str, out: Path) -> tuple[dict[str, float], str]:
    """Metrics of 40 requests, and what was said."""
    command = [python, *SERVE, f"output_dir={out}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())["metrics"]
    return metrics, done.stdout + done.stderr


@pytest.mark.parametrize("release", ["0.27.1", "0.30.0", "0.32.0"])
def test_a_newer_vllm_serves(tmp_path: Path, release: str) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--python", "3.12", environment], check=True)
    wanted = [f"vllm=={release}", "-e", str(PROJECT)]
    subprocess.run(["uv", "pip", "install", "-q", "--python", python, *wanted], check=True)
    newer, said = serve(python, tmp_path / "newer")
    measured, _ = serve(sys.executable, tmp_path / "measured")
    assert f"vllm {release}: its kernels and host costs were measured with {MEASURED['vllm']}" in said
    for name in ("tpot_ms_p50", "e2e_ms_p50"):
        assert newer[name] == pytest.approx(measured[name], rel=0.1)
