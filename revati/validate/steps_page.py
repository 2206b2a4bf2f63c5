"""STEPS.md: engine steps of emulation and measurement side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from revati.validate import turns, workers
from revati.validate.runs import Case, MeasuredRun
from revati.validate.steps import Steps, compare, emulated_steps, graph_settings, measured_steps

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

    def page(self, *shown: Sequence[str]) -> str:
        return compare(Steps.concatenate(self.measured), Steps.concatenate(self.emulated), *shown)


def write_steps(cases: Iterable[Case], trials: Path, path: Path) -> None:
    """Compare all cases that have both a step log and an emulated timeline, by model and deployment."""
    core: dict[str, Pair] = {}
    worker: dict[str, Pair] = {}
    for case in cases:
        timeline = trials / case.name / "phases.parquet"
        if not timeline.is_file():
            continue
        phases = pq.read_table(timeline)
        name = _title(case.description)
        largest, eager = graph_settings(case.description)
        for run in case.runs:
            if (measured := _measured(run)) is not None:
                pair = core.setdefault(name, Pair())
                pair.measured.append(measured)
                pair.emulated.append(emulated_steps(phases))
            calls = run.folder / "workers.parquet"
            if calls.is_file() and (emulated := workers.emulated_calls(phases)):
                pair = worker.setdefault(name, Pair())
                pair.emulated.append(emulated)
                pair.measured.append(
                    workers.measured_calls(
                        pq.read_table(calls),
                        tensor_parallel=case.description["tensor_parallel_size"],
                        eager=eager,
                        largest_graph=largest,
                    )
                )
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
