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


@pytest.mark.parametrize("deployment", ["inprocess", "processes"])
def test_empty_and_warm_compile_caches_give_the_same_requests(deployment: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    environment = os.environ | {"REVATI_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, *OFFLINE, f"deployment={deployment}"]
    compiled, found = [], []
    for caches_are in ("empty", "warm"):
        run = tmp_path / caches_are
        subprocess.run(
            [*command, f"hydra.run.dir={run}"], env=environment, check=True, capture_output=True, timeout=600
        )
        compiled.append(any("Compiling a graph" in log.read_text() for log in run.rglob("*.log")))
        found.append({path.name: pq.read_table(path) for path in run.rglob("*.parquet")})
    assert compiled == [True, False]
    cold, warm = found
    tables = {"workload.parquet", "emulate.parquet", "kernels.parquet"}
    assert tables | ({"phases.parquet"} if deployment == "inprocess" else set()) <= cold.keys() == warm.keys()
    for name, table in cold.items():  # as pandas, for which a NaN equals a NaN
        assert table.to_pandas().equals(warm[name].to_pandas()), name
