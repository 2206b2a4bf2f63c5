"""What it costs vLLM's host to launch a forward pass that no single graph holds: layers and frame chunks.

Engines of one machine differ in it by up to 1.7 times, by how often their frames begin a chunk of Python's
stack (`revati.engines.vllm.frame_chunks`).  What is left goes by layers, and is the same for all models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from revati.validate.frame_chunks import FILE, Chunks, Engine, framed, read
from revati.validate.options import validation_dir
from revati.validate.runs import model_shape
from revati.virtual_time.host_table import HostTable

KINDS = ("piecewise", "compiled")
SHAPE = (16, 300, 1)  # requests, prompt tokens and prefills of a step
LEAST_ENGINES = 5  # by which what layers cost is told from what chunks do
_DIGITS = 1


@dataclass(frozen=True, slots=True)
class Launch:
    """What it cost an engine process to launch a step of a kind and of `SHAPE`, over its machine's slowdown.

    ranks: tensor-parallel ones. ranks_factor: of the calibrated table, for so many.
    """

    engine: Engine
    kind: str
    layers: int
    ranks: int
    ranks_factor: float
    chunks: int
    us: float


@dataclass(frozen=True, slots=True)
class LaunchCosts:
    """In µs at slowdown 1; ``base`` and ``layer`` by kind of step, of `SHAPE`."""

    base: Mapping[str, float]
    layer: Mapping[str, float]
    chunk: float

    def without_chunks_us(self, kind: str, layers: int) -> float:
        return self.base[kind] + layers * self.layer[kind]


def launch_of(
    description: Mapping[str, Any], kind: str, slowdown: float, calibrated: HostTable
) -> Launch | None:
    """From the slowdown of an engine process; None if its frames were never counted, nor those of any SGLang.

    Args:
        description: the run.json of one of its runs, in one stage.
        slowdown: relative to its machine's, and to the calibrated table at slowdown 1.
    """
    engine, counts = framed(description), _counted()
    if description["engine"] != "vllm" or kind not in KINDS or kind not in counts.get(engine, {}):
        return None
    _, _, ranks = engine
    layers = model_shape(description["model"]).num_hidden_layers
    alone_us, us = (calibrated.phase_us("execute", kind, *SHAPE, layers, count) for count in (1, ranks))
    return Launch(engine, kind, layers, ranks, us / alone_us, counts[engine][kind], slowdown * us)


def fit(launches: Sequence[Launch]) -> LaunchCosts | None:
    """From engines on one GPU, each counting once; None where they are too few."""
    grouped: dict[tuple[str, Engine], list[Launch]] = {}
    for launch in launches:
        if launch.ranks == 1:
            grouped.setdefault((launch.kind, launch.engine), []).append(launch)
    told = {kind: [members for (one, _), members in grouped.items() if one == kind] for kind in KINDS}
    if min(map(len, told.values())) < LEAST_ENGINES:
        return None
    rows, ones = [], []
    for at, kind in enumerate(KINDS):
        for members in told[kind]:
            us, first = median(one.us for one in members), members[0]
            terms = np.zeros(2 * len(KINDS) + 1)
            terms[2 * at : 2 * at + 2] = 1.0, first.layers
            terms[-1] = first.chunks
            rows.append(terms / us)  # errors are relative
            ones.append(1.0)
    found, _ = nnls(np.array(rows), np.array(ones))
    base, layer = (dict(zip(KINDS, map(float, found[start:-1:2]), strict=True)) for start in (0, 1))
    return LaunchCosts(base, layer, float(found[-1]))


def factors(launches: Iterable[Launch], costs: LaunchCosts) -> dict[tuple[str, bool], float]:
    """Of a machine, on what layers cost, by kind and whether ranks are several; without the chunks."""
    found: dict[tuple[str, bool], list[float]] = {}
    for one in launches:
        expected_us = costs.without_chunks_us(one.kind, one.layers) * one.ranks_factor
        found.setdefault((one.kind, one.ranks > 1), []).append(
            (one.us - one.chunks * costs.chunk) / expected_us
        )
    return {key: median(values) for key, values in found.items()}


def table_rows(costs: LaunchCosts, calibrated: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of a host table's phase ``execute``.

    Args:
        calibrated: the rows of the calibrated one, by kind, which say what requests and prefills cost.
    """
    requests, tokens, prefills = SHAPE
    rows = {}
    for kind in KINDS:
        row = {name: value for name, value in calibrated[kind].items() if name != "samples"}
        of_shape_us = (
            requests * row.get("per_request_us", 0.0)
            + tokens * row.get("per_token_us", 0.0)
            + prefills * row.get("per_prefill_us", 0.0)
        )
        row["base_us"] = round(costs.base[kind] - of_shape_us, _DIGITS)
        row["per_layer_us"] = round(costs.layer[kind], _DIGITS)
        rows[kind] = row
    return rows


def said_us(launch: Launch, table: HostTable) -> float:
    """What a table says of one."""
    us = table.phase_us("execute", launch.kind, *SHAPE, launch.layers, launch.ranks)
    return us + (launch.chunks * table.frame_chunks.us if table.frame_chunks else 0.0)


@cache
def _counted() -> Mapping[Engine, Chunks]:
    return read(validation_dir() / FILE)
