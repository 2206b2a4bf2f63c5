"""Launches of forward passes: what layers and what frame chunks cost is told apart."""

from __future__ import annotations

import pytest

from revati.validate import launches
from revati.validate.launches import KINDS, Launch, LaunchCosts
from revati.virtual_time.host_table import HostTable, read_table

COSTS = LaunchCosts({"piecewise": 3000.0, "compiled": 4000.0}, {"piecewise": 60.0, "compiled": 300.0}, 12.0)
ENGINES = ((28, 196), (32, 160), (36, 1), (48, 538), (64, 1))  # layers, chunks


def launched(layers: int, chunks: int, kind: str, slower: float = 1.0, ranks: int = 1) -> Launch:
    engine = f"layers{layers} chunks{chunks}", "", ranks
    us = slower * COSTS.without_chunks_us(kind, layers) * (0.8 if ranks > 1 else 1.0) + COSTS.chunk * chunks
    return Launch(engine, kind, layers, ranks, 0.8 if ranks > 1 else 1.0, chunks, us)


def all_launched() -> list[Launch]:
    return [launched(*engine, kind) for engine in ENGINES for kind in KINDS]


def test_engines_tell_what_layers_and_chunks_cost() -> None:
    found = launches.fit(all_launched())
    assert found is not None
    assert found.chunk == pytest.approx(COSTS.chunk)
    for kind in KINDS:
        assert found.base[kind] == pytest.approx(COSTS.base[kind])
        assert found.layer[kind] == pytest.approx(COSTS.layer[kind])


def test_few_engines_and_several_ranks_tell_nothing() -> None:
    assert launches.fit(all_launched()[: 2 * (launches.LEAST_ENGINES - 1)]) is None
    assert launches.fit([launched(*engine, kind, ranks=2) for engine in ENGINES for kind in KINDS]) is None


def test_a_machines_factor_is_of_the_layers() -> None:
    ones = [launched(32, chunks, "piecewise", 1.5) for chunks in (0, 160)]
    ranked = [launched(40, 5, "piecewise", 1.2, ranks=2)]
    found = launches.factors([*ones, *ranked], COSTS)
    assert found == {("piecewise", False): pytest.approx(1.5), ("piecewise", True): pytest.approx(1.2)}


def test_rows_say_what_was_fitted() -> None:
    calibrated = read_table("h200_xeon")
    execute = launches.table_rows(COSTS, calibrated["phases"]["execute"])
    chunks = {"us": COSTS.chunk, "engine_core_words": 1, "worker_words": 1}
    table = HostTable("made", {"execute": execute}, frame_chunks=chunks)
    for layers, begun, kind in ((32, 160, "piecewise"), (40, 0, "compiled")):
        launch = launched(layers, begun, kind)
        assert launches.said_us(launch, table) == pytest.approx(launch.us, rel=1e-3)


def test_the_measured_engines_were_counted() -> None:
    description = {
        "engine": "vllm",
        "model": "llama32_3b",
        "engine_args": {},
        "tensor_parallel_size": 1,
    }
    launch = launches.launch_of(description, "piecewise", 2.0, HostTable.load("h200_xeon", slowdown=1.0))
    assert launch is not None
    assert launch.chunks > 28, "more than one a layer"
    assert launches.launch_of(description, "full", 2.0, HostTable.load("h200_xeon", slowdown=1.0)) is None
    for unknown in ({"tensor_parallel_size": 16}, {"engine": "sglang"}):
        other = description | unknown
        assert launches.launch_of(other, "piecewise", 2.0, HostTable.load("h200_xeon", slowdown=1.0)) is None
