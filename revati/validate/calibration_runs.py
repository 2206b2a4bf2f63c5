"""Which measured runs tell how fast a case's machine was: the engine's own, and others' on that machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from revati.validate.runs import Case, Manifest

LEAST_RUN_STEPS = 200  # fewer long steps tell nothing of a host that is busy with short ones


def others(case: Case) -> list[Path]:
    """Runs beside a case's with a long step log that the same engine processes served, without its own."""
    # The start tells the runs of one engine from those of its like.
    known = [run.description for run in case.runs if run.description.get("engine_start_s") is not None]
    engines = {engine_of(description) for description in known}
    return [run for run in _long_logs(case) if engine_of(describe(run)) in engines]


class Neighbours(NamedTuple):
    """Runs with a long step log of engines that are parallel in the same ways as another one.

    How much longer than a decode a prefill takes vLLM to launch differs by a factor of 1.7 between models, on
    all machines, and between engines of one model by 5 to 10 %: the frames of its compiled forward grow with
    the layers, and end early or late in a chunk of Python's stack.
    """

    same_model: Sequence[Path] = ()
    elsewhere: Sequence[Sequence[Path]] = ()  # vLLM's of the same model on other machines, by machine
    other_models: Sequence[Path] = ()


def neighbours(case: Case, engines_own: Sequence[Path]) -> Neighbours:
    """Those of a case's engine, on its machine and elsewhere.

    Args:
        engines_own: what `others` says.
    """
    if case.machine is None:
        return Neighbours()
    manifest = Manifest.read(case.runs[0].folder.parent)
    own = case.description
    here: dict[bool, list[Path]] = {True: [], False: []}
    elsewhere: dict[str, list[Path]] = {}
    for run in _long_logs(case):
        description, machine = describe(run), manifest.machine_of(run.name)
        if run in engines_own or machine is None or _layout(description) != _layout(own):
            continue
        same = _model(description) == _model(own)
        if machine == case.machine:
            here[same].append(run)
        elif same and own["engine"] == "vllm" and description["gpu"] == own["gpu"]:
            elsewhere.setdefault(machine, []).append(run)
    return Neighbours(here[True], list(elsewhere.values()), here[False])


def _long_logs(case: Case) -> list[Path]:
    """All runs in a case's folder with a long step log, without its own."""
    own = {run.name for run in case.runs}
    runs = sorted(path.parent for path in case.runs[0].folder.parent.glob("*/steps.parquet"))
    return [run for run in runs if run.name not in own and has_long_log(run)]


def _layout(description: Mapping[str, Any]) -> tuple[object, ...]:
    sizes = (int(description[f"{kind}_parallel_size"]) > 1 for kind in ("tensor", "pipeline"))
    return description["engine"], *sizes


def _model(description: Mapping[str, Any]) -> tuple[object, ...]:
    return description["model"], description["engine_args"].get("quantization")


def has_long_log(run: Path) -> bool:
    """Whether a run's step log tells enough of its host."""
    log = run / "steps.parquet"
    return log.is_file() and pq.read_metadata(log).num_rows >= LEAST_RUN_STEPS


def engine_of(description: Mapping[str, Any]) -> str:
    """Equal for runs of one engine process."""
    return json.dumps(
        [description.get(name) for name in ("engine", "model", "engine_args", "engine_start_s")]
    )


def describe(folder: Path) -> dict[str, Any]:
    """A run's run.json."""
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content
