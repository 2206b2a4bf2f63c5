"""A folder of measured runs, made from the one in tests/data, and an emulation that echoes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from revati.spec import DeploymentSpec
from revati.workload import Workload

MEASURED_RUN = Path(__file__).parent.parent / "data" / "measured_run"
ECHOED_BLOCKS = 14874

AddRun = Callable[..., Path]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """An empty folder for measured runs."""
    folder = tmp_path / "measured"
    folder.mkdir()
    return folder


@pytest.fixture
def add_run(measured: Path) -> AddRun:
    """Adds a run whose latencies are those of tests/data times a factor, and changes its description."""

    def add(name: str, factor: float = 1.0, **changes: Any) -> Path:
        folder = measured / name
        shutil.copytree(MEASURED_RUN, folder)
        description = json.loads((folder / "run.json").read_text()) | changes
        (folder / "run.json").write_text(json.dumps(description))
        _slow_down(folder / "requests.parquet", folder / "requests.parquet", factor)
        return folder

    return add


class Echo:
    """Answers a replay with the measured requests themselves, slower by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.specs: list[DeploymentSpec] = []

    def __call__(self, spec: DeploymentSpec, workload: Workload, out: Path) -> Any:
        self.specs.append(spec)
        table = pq.read_table(MEASURED_RUN / "requests.parquet")
        assert workload.arrival_s.tolist() == table["arrival_s"].to_pylist()
        out.mkdir(parents=True, exist_ok=True)
        _slow_down(MEASURED_RUN / "requests.parquet", out / "requests.parquet", self.factor)
        return SimpleNamespace(
            status="ok",
            reason="",
            requests_path=out / "requests.parquet",
            kv_cache_blocks=ECHOED_BLOCKS,
            provenance={},
        )


@pytest.fixture
def echo() -> Callable[[float], Echo]:
    return Echo


def _slow_down(source: Path, target: Path, factor: float) -> None:
    table = pq.read_table(source)
    for name in ("ttft_s", "e2e_s"):
        values = [factor * value for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, target)
