"""STEPS.md: engine steps of emulation and measurement side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati.validate import kept_steps, turns, workers
from revati.validate.runs import Case, MeasuredRun
from revati.validate.steps import ENGINE_CORE, Steps, compare, graph_settings, measured_steps

INTRODUCTION = """\
# Engine steps, emulated against measured

Means in µs over all steps of a kind and size class, and the emulation's error in percent; every case counts
as often as it was measured. *Host*: schedule, execute, sample and update of the engine core; where workers
are processes of their own, it only dispatches to them instead of executing and sampling. *GPU*: time between
the completions of two steps that ran back to back on the GPU, so only of steps that the engine waited for.
*Period*: from one scheduling to the next without idle time. Sizes: requests for full graphs, scheduled tokens
for the other kinds."""


@dataclass(slots=True)
class Pair:
    """Steps of some cases as measured and as emulated."""

    measured: list[Steps] = field(default_factory=list)
    emulated: list[Steps] = field(default_factory=list)

    def add(self, measured: Steps, emulated: Steps) -> None:
        self.measured.append(measured)
        self.emulated.append(emulated)

    def page(self, *shown: Sequence[str]) -> str:
        return compare(Steps.concatenate(self.measured), Steps.concatenate(self.emulated), *shown)


def write_steps(cases: Iterable[Case], emulated: Path, path: Path) -> None:
    """Compare all cases that have both a step log and kept steps, by model and deployment, if any has."""
    core: dict[str, Pair] = {}
    worker: dict[str, Pair] = {}
    for case in cases:
        kept = emulated / case.name / kept_steps.FILE
        if not kept.is_file():
            continue
        steps = kept_steps.read_steps(kept)
        name = _title(case.description)
        for run in case.runs:
            if (measured := _measured(run)) is not None:
                core.setdefault(name, Pair()).add(measured, steps[ENGINE_CORE])
            if kept_steps.WORKERS in steps and (calls := _measured_calls(run)) is not None:
                worker.setdefault(name, Pair()).add(calls, steps[kept_steps.WORKERS])
    if not core:
        return
    parts = [INTRODUCTION]
    for name, pair in core.items():
        parts += [f"## {name}", pair.page()]
        if name in worker:
            parts += ["Its workers (of tensor-parallel ranks the slowest):", worker[name].page(workers.SHOWN)]
    path.write_text("\n\n".join(parts) + "\n")


def _title(description: Mapping[str, Any]) -> str:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    settings = {name: description[name] for name in sizes if description[name] > 1}
    settings |= description["engine_args"]
    engine = [] if description["engine"] == "vllm" else [description["engine"]]
    deployed = [*engine, description["model"], description["gpu"]]
    return ", ".join([*deployed, *(f"{key}={value}" for key, value in settings.items())])


def _measured(run: MeasuredRun) -> Steps | None:
    if not (log := run.folder / "steps.parquet").is_file():
        return None
    if run.description["engine"] == "vllm":
        largest, eager = graph_settings(run.description)
        return measured_steps(pq.read_table(log), eager=eager, largest_graph=largest)
    found = turns.read(run.folder, run.description)
    return turns.steps(found) if found else None


def _measured_calls(run: MeasuredRun) -> Steps | None:
    if not (log := run.folder / "workers.parquet").is_file():
        return None
    largest, eager = graph_settings(run.description)
    ranks = run.description["tensor_parallel_size"]
    return workers.measured_calls(
        pq.read_table(log), tensor_parallel=ranks, eager=eager, largest_graph=largest
    )
