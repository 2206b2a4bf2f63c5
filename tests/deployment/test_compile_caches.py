"""Table mode gives the same requests whatever vLLM's compile caches hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

# All requests at once, by which the GPU is at its power limit soon.
OFFLINE = ("-m", "revati.emulate", "+model=llama32_3b", "workload=offline", "workload.num_requests=60")


def test_empty_and_warm_compile_caches_give_the_same_requests(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    caches = {"VLLM_CACHE_ROOT": tmp_path / "vllm", "TORCHINDUCTOR_CACHE_DIR": tmp_path / "inductor"}
    environment = os.environ | {name: str(path) for name, path in caches.items()}
    run = tmp_path / "run"  # the model's folder, which is in here, is a part of vLLM's key
    command = [sys.executable, *OFFLINE, f"hydra.run.dir={run}"]
    compiled, found = [], []
    for caches_are in ("empty", "warm"):
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
        compiled.append("Compiling a graph" in next(run.rglob("engine.log")).read_text())
        found.append({path.name: pq.read_table(path) for path in run.rglob("*.parquet")})
        run.rename(tmp_path / caches_are)
    assert compiled == [True, False]
    cold, warm = found
    assert {"emulate.parquet", "phases.parquet", "kernels.parquet"} <= cold.keys() == warm.keys()
    for name, table in cold.items():
        assert table.equals(warm[name]), name
