"""The host table of a machine that nobody has measured: the median of those that were.

    python -m revati.validate.machines

Writes conf/host/rented_xeon.yaml and rented_xeon_sglang.yaml, what a sweep assumes, and validation/HOSTS.md:
how wrong such a table is for each machine if it is made from the others.  Each machine counts once, whatever
it served, and only step logs are looked at, no latencies.  A phase and kind of step that few machines show is
known by its factor on the slowdown of those that do, so that it does not matter whether they were fast ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from revati import paths
from revati.profile.host_fit import LEVELS
from revati.profile.host_in_common import shares
from revati.profile.host_logs import Array
from revati.validate import in_common, launches
from revati.validate.calibration import Calibration, calibrate
from revati.validate.calibration_runs import engine_of, has_long_log
from revati.validate.frame_chunks import MEASURED_WORDS
from revati.validate.host_comparison import unslowed
from revati.validate.launches import Launch
from revati.validate.machines_page import HostError, page
from revati.validate.options import validation_dir
from revati.validate.runs import Case, MeasuredRun, read_cases
from revati.virtual_time.host import WORKER_PHASES
from revati.virtual_time.host_table import HostTable, name_for, read_table

RENTED = "rented_xeon"
CALIBRATED = "h200_xeon"  # the table that machines are compared with
ENGINES = ("vllm", "sglang")
STEP_PHASES = ("schedule", "execute", "sample", "update")
DECODES = (16, 0, 0, 32)  # requests, prompt tokens, prefills and layers of a step
WITH_PROMPT = (16, 300, 1, 32)
_HEADER = "# Made by python -m revati.validate.machines; see revati/virtual_time/host_table.py.\n"
_DIGITS = 3

# Phase, kind of step, and whether several ranks work on it.
Column = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How slow a machine was for one engine.

    common: relative to the calibrated table at slowdown 1, by the phases that every engine's core runs.
    factors: on it, by phase and kind. runs: whose step logs told. together: how steps of each correlate.
    launches: of forward passes, by engine process.
    """

    common: float
    factors: Mapping[Column, float]
    runs: Sequence[str]
    together: Sequence[Array] = ()
    launches: Sequence[Launch] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A rented machine: what is written down of it, what was measured on it, how slow it was by engine."""

    name: str
    about: Mapping[str, Any]
    cases: Sequence[str]
    by_engine: Mapping[str, Slowdown]

    @property
    def slowdown(self) -> float:
        return fmean(found.common for found in self.by_engine.values())


def machines_of(cases: Sequence[Case]) -> list[Machine]:
    """The machines on which cases were measured and logged."""
    grouped: dict[str, list[Case]] = {}
    for case in cases:
        if case.machine:
            grouped.setdefault(case.machine, []).append(case)
    found = [_machine(name, of_machine) for name, of_machine in sorted(grouped.items())]
    return [machine for machine in found if machine.by_engine]


def typical(
    machines: Sequence[Machine], engine: str, words: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """An engine's table of a host as slow as the median of some machines and of the calibrated ones.

    Args:
        words: on the stack below a forward pass, by the fields of `ChunkCosts`, if not those of a server.
    """
    base = name_for(CALIBRATED, engine)
    known = read_table(base)
    calibrated = {name: HostTable.load(name).slowdown for name in (name_for(CALIBRATED, e) for e in ENGINES)}
    slowdowns = [*calibrated.values(), *(machine.slowdown for machine in machines)]
    content: dict[str, Any] = {
        "base": base,
        "slowdowns": {level: _rounded(float(np.quantile(slowdowns, q))) for level, q in LEVELS.items()},
        "level": "typical",
    }
    logged = [(machine, machine.by_engine[engine]) for machine in machines if engine in machine.by_engine]
    if "pipeline" in known:
        of_runs = {str(entry.get("run")) for entry in known["provenance"]}
        measured_on = [found.common for machine, found in logged if of_runs & set(machine.cases)]
        content["pipeline_slowdown"] = _rounded(median(measured_on or slowdowns))
    factors = [dict(found.factors) for _, found in logged]
    if costs := launches.fit([launch for _, found in logged for launch in found.launches]):
        content["phases"] = {"execute": launches.table_rows(costs, known["phases"]["execute"])}
        content["frame_chunks"] = {"us": round(costs.chunk, _DIGITS), **(words or {})}
        for of_machine, (_, found) in zip(factors, logged, strict=True):
            for (kind, ranked), factor in launches.factors(found.launches, costs).items():
                of_machine["execute", kind, ranked] = factor
    content["factor_of"], content["tensor_parallel"] = _factors(factors, known.get("tensor_parallel", {}))
    if together := [run for _, found in logged for run in found.together]:
        content["in_common"] = shares(together)
    content["provenance"] = [
        *({"calibrated": name, "slowdown": slowdown} for name, slowdown in calibrated.items()),
        *(
            {
                "machine": machine.name,
                "slowdown": _rounded(machine.slowdown),
                **machine.about,
                "runs": list(machine.by_engine[engine].runs) if engine in machine.by_engine else [],
            }
            for machine in machines
        ),
    ]
    return content


def table_of_others(machines: Sequence[Machine], name: str | None, engine: str, folder: Path) -> Path:
    """Write an engine's table of all machines but one into a folder."""
    others = [machine for machine in machines if machine.name != name]
    return write(typical(others, engine, MEASURED_WORDS), folder / f"all_but_{name}_{engine}.yaml")


def unseen(cases: Sequence[Case], machines: Sequence[Machine], folder: Path) -> list[Case]:
    """The cases on tables that know nothing of their machines, but all others; written into a folder."""

    def table_of(case: Case) -> str:
        return str(table_of_others(machines, case.machine, case.description["engine"], folder))

    return [replace(case, host=table_of(case)) for case in cases]


def step_errors_pct(found: Slowdown, table: HostTable, engine: str) -> dict[tuple[str, bool], float]:
    """How much longer a table says that a machine's host needs for a step than its logs do.

    By kind of step, and whether several ranks work on it; of a step of `DECODES` or `WITH_PROMPT`.
    """
    one = unslowed(name_for(CALIBRATED, engine))
    errors = {}
    for kind, ranked in sorted({(kind, ranked) for _, kind, ranked in found.factors}):
        logged = [phase for phase in STEP_PHASES if (phase, kind, ranked) in found.factors]
        if "execute" in logged:
            shape = (kind, *(DECODES if kind in ("full", "eager") else WITH_PROMPT), 2 if ranked else 1)
            real_us = {
                phase: found.factors[phase, kind, ranked] * one.phase_us(phase, *shape) for phase in logged
            }
            said_us = {phase: table.phase_us(phase, *shape) for phase in logged}
            if own := [
                launch for launch in found.launches if (launch.kind, launch.ranks > 1) == (kind, ranked)
            ]:
                real_us["execute"] = fmean(launch.us for launch in own)
                said_us["execute"] = fmean(launches.said_us(launch, table) for launch in own)
            errors[kind, ranked] = 100 * (sum(said_us.values()) / (found.common * sum(real_us.values())) - 1)
    return errors


def write(content: Mapping[str, Any], path: Path) -> Path:
    """Write a host table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _HEADER + yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110)
    )
    return path


def _machine(name: str, cases: Sequence[Case]) -> Machine:
    runs = [run for case in cases for run in case.runs if has_long_log(run.folder)]
    by_engine = {
        engine: found
        for engine in ENGINES
        if (found := _slowdown([run for run in runs if run.description["engine"] == engine], engine))
    }
    about = _about(cases[0].description.get("environment", {}))
    return Machine(name, about, [case.name for case in cases], by_engine)


def _slowdown(runs: Iterable[MeasuredRun], engine: str) -> Slowdown | None:
    processes: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        processes.setdefault(engine_of(run.description), []).append(run)
    of_one_gpu: list[float] = []
    of_several: list[float] = []
    costs: dict[Column, list[float]] = {}
    used: list[str] = []
    together: list[Array] = []
    launched: list[tuple[Mapping[str, Any], str, float]] = []
    for members in processes.values():
        found = calibrate([run.folder for run in members], name_for(CALIBRATED, engine))
        if found is None:
            continue
        used += [run.name for run in members]
        of_runs = [in_common.of_run(run.folder, run.description) for run in members]
        together += [one for one in of_runs if one is not None]
        one_gpu = members[0].description["num_gpus"] == 1
        (of_one_gpu if one_gpu else of_several).append(found.slowdown)
        for column, slowdown in _columns(found, members[0].description):
            costs.setdefault(column, []).append(slowdown)
            if column[0] == "execute":
                launched.append((members[0].description, column[1], slowdown))
    if not used:
        return None
    common = median(of_one_gpu or of_several)
    factors = {key: median(values) / common for key, values in sorted(costs.items())}
    known = [
        launches.launch_of(description, kind, slowdown / common, unslowed(name_for(CALIBRATED, engine)))
        for description, kind, slowdown in launched
    ]
    return Slowdown(common, factors, used, together, [launch for launch in known if launch is not None])


def _columns(found: Calibration, description: Mapping[str, Any]) -> Iterator[tuple[Column, float]]:
    tensor_parallel = int(description["tensor_parallel_size"])
    stages = int(description["pipeline_parallel_size"])
    for phase, kinds in found.by_phase.items():
        if phase in WORKER_PHASES and stages > 1:
            continue  # not like other engines': the last stage samples for 1.4 times as long
        ranks = tensor_parallel if phase in WORKER_PHASES else tensor_parallel * stages
        logged = {kind: slowdown for kind, slowdown in kinds.items() if kind != "any"} or kinds
        for kind, slowdown in logged.items():
            yield (phase, kind, ranks > 1), slowdown


def _factors(
    machines: Sequence[Mapping[Column, float]],
    tensor_parallel: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[int, float]]]]:
    """Medians over machines of each phase's factor, and of what several ranks make of it."""
    known: dict[Column, list[float]] = {}
    for factors in machines:
        for column, factor in factors.items():
            known.setdefault(column, []).append(factor)
    alone: dict[str, dict[str, float]] = {}
    ranked: dict[str, dict[str, float]] = {}
    for (phase, kind, by_ranks), found in sorted(known.items()):
        (ranked if by_ranks else alone).setdefault(phase, {})[kind] = median(found)
    for phase in ranked.keys() - alone.keys():  # only where workers have processes of their own
        alone[phase] = ranked.pop(phase)
    for kinds in (*alone.values(), *ranked.values()):
        kinds.setdefault("any", fmean(kinds.values()))
    of_ranks = {
        phase: {
            kind: {
                ranks: _rounded(factor * _ratio(ranked, alone, phase, kind))
                for ranks, factor in _by_ranks(tensor_parallel.get(phase, {}), kind).items()
            }
            for kind in sorted({*tensor_parallel.get(phase, {}), *ranked.get(phase, {})})
        }
        for phase in sorted({*tensor_parallel, *ranked})
    }
    factors_of = {
        phase: {kind: _rounded(factor) for kind, factor in kinds.items()}
        for phase, kinds in sorted(alone.items())
    }
    return factors_of, of_ranks


def _by_ranks(by_kind: Mapping[str, Mapping[int, float]], kind: str) -> Mapping[int, float]:
    return by_kind.get(kind, by_kind.get("any", {2: 1.0}))


def _ratio(
    ranked: Mapping[str, Mapping[str, float]], alone: Mapping[str, Mapping[str, float]], phase: str, kind: str
) -> float:
    if phase not in ranked:
        return 1.0  # nobody saw ranks: they are as slow as one
    return _of_kind(ranked[phase], kind) / _of_kind(alone[phase], kind)


def _of_kind(kinds: Mapping[str, float], kind: str) -> float:
    return kinds.get(kind, kinds["any"])


def _about(environment: Mapping[str, Any]) -> dict[str, Any]:
    cpu = environment.get("cpu", environment.get("host"))
    written = {
        "recorded_at": environment.get("recorded_at"),
        "cpu": cpu,
        "cpus": environment.get("cpus"),
    }
    return {name: value for name, value in written.items() if value is not None}


def _rounded(value: float) -> float:
    return round(value, _DIGITS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    validation, tables = validation_dir(), paths.conf_dir() / "host"
    parser.add_argument("--runs", type=Path, default=validation / "runs", help="measured runs")
    parser.add_argument("--tables", type=Path, default=tables, help="folder of host tables")
    parser.add_argument("--page", type=Path, default=validation / "HOSTS.md", help="the expected errors")
    arguments = parser.parse_args(argv)
    machines = machines_of(read_cases([arguments.runs]))
    for engine in ENGINES:
        write(typical(machines, engine), arguments.tables / f"{name_for(RENTED, engine)}.yaml")
    arguments.page.write_text(page(_errors(machines)))
    print(arguments.page.read_text())
    return 0


def _errors(machines: Sequence[Machine]) -> list[HostError]:
    errors = []
    with TemporaryDirectory() as folder:
        for machine in machines:
            for engine, found in machine.by_engine.items():
                table = HostTable.load(str(table_of_others(machines, machine.name, engine, Path(folder))))
                steps_pct = step_errors_pct(found, table, engine)
                errors.append(HostError(engine, machine.name, found.common, table.slowdown, steps_pct))
    return errors


if __name__ == "__main__":
    sys.exit(main())
