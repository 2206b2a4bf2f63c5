"""A sweep from its configuration to its output folder."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from revati.search import output
from revati.search.build import build_objective, build_problem, build_workload, plain
from revati.search.campaign import Campaign
from revati.search.errors import ConfigError, unknown
from revati.search.ledger import NAME as LEDGER
from revati.search.ledger import Ledger
from revati.search.objective import Objective
from revati.search.problem import Problem
from revati.search.progress import Progress
from revati.search.proposers import ALGORITHMS, Proposer, make_proposer
from revati.search.runner import runner_for
from revati.search.signals import INTERRUPTED
from revati.search.space import JointSpace, SearchSpace, load_joint_space, load_space
from revati.workload import Workload


@dataclass(frozen=True, slots=True)
class Sweep:
    """The parts of a sweep, all checked."""

    problem: Problem
    objective: Objective
    space: SearchSpace
    workload: Workload
    num_trials: int | None
    algorithm: str

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(self.space.parts) if isinstance(self.space, JointSpace) else (self.problem.engine,)

    @property
    def total(self) -> int | None:
        """How many rows there will be, as far as it is known beforehand."""
        known = [count for count in (self.space.size, self.num_trials) if count is not None]
        return min(known, default=None)


def build(config: DictConfig) -> Sweep:
    """Build and check everything that can be checked without starting anything.

    Raises:
        ConfigError: with one line that names what is accepted.
    """
    problem = build_problem(config, config.num_gpus)
    space = _space(config, problem)
    search = config.search
    if search.algorithm not in ALGORITHMS:
        raise unknown("search.algorithm", search.algorithm, ALGORITHMS)
    if search.algorithm == "grid":
        next(space.grid())
    elif search.num_trials is None:
        raise ConfigError("search.num_trials is null; accepted by this algorithm: an integer >= 1")
    for name in ("num_trials", "max_concurrent", "startup_trials", "population_size"):
        least = 2 if name == "population_size" else 1
        if search[name] is not None and search[name] < least:
            raise ConfigError(f"search.{name}={search[name]}: accepted: an integer >= {least}")
    return Sweep(
        problem, build_objective(config), space, build_workload(config), search.num_trials, search.algorithm
    )


def _space(config: DictConfig, problem: Problem) -> SearchSpace:
    engines, knobs = list(dict.fromkeys(config.engines)), plain(config.knobs)
    if len(engines) < 2:
        return load_space(config.search_space, problem.engine, knobs)
    if config.search_space != "default":
        raise ConfigError(f"search_space={config.search_space}: accepted with several engines: default")
    return load_joint_space(engines, knobs)


def _runner(config: DictConfig, sweep: Sweep) -> str:
    return runner_for(config.deployment, sweep.engines, sweep.space.replicas, sweep.space.stages)


def check_sweep(config: DictConfig) -> None:
    """Raise ConfigError if the sweep cannot be run as it was asked for."""
    _runner(config, build(config))
    folder = Path(config.output_dir)
    if (folder / LEDGER).exists():
        output.require_same_sweep(folder, config)


def run_sweep(config: DictConfig, folder: Path, overrides: list[str], runner: str | None = None) -> int:
    """Run the sweep, or go on with it, and write its output folder.

    Args:
        folder: where the output goes; a ledger in it is gone on with.
        overrides: of the command line, kept for ``resume=``.
        runner: module with TemplateServer and TemplateClient; None: the configured deployment's.

    Returns:
        The exit status: 0, 1 if no trial ran to its end, 130 after an interruption.
    """
    from revati.search.ray_tune import TrialSetup, default_concurrency, run_campaign

    sweep = build(config)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    output.write_config(folder, config, overrides, sweep.workload)
    concurrency = config.search.max_concurrent or default_concurrency(max(sweep.space.replicas))
    with Ledger(folder / LEDGER) as ledger:
        progress = Progress(sweep.objective, sweep.space, sweep.total, ledger.rows)
        progress.say(_headline(sweep, folder, concurrency, len(ledger.rows)))
        campaign = Campaign(
            sweep.problem,
            sweep.objective,
            _proposer(sweep, config, len(ledger.rows)),
            ledger,
            num_trials=sweep.num_trials,
            batch=_batch(sweep.algorithm, config.search.population_size),
            on_finish=progress,
            on_engine=progress.engine,
        )
        setup = TrialSetup(
            runner or _runner(config, sweep),
            sweep.problem.gpu,
            sweep.engines,
            folder / output.WORKLOAD,
            sweep.workload.name,
            sweep.objective.request_slo,
            folder,
        )
        started = time.monotonic()
        interrupted = False
        try:
            if campaign.has_work():
                run_campaign(
                    campaign, setup, concurrency=concurrency, dashboard=config.ray.dashboard, say=progress.say
                )
        except KeyboardInterrupt:
            interrupted = True
        summary = output.write_results(folder, config, sweep.problem, sweep.objective, sweep.space, ledger)
    progress.say(summary)
    progress.say(f"{len(ledger.rows)} trials, {time.monotonic() - started:.0f} s. Output: {folder}")
    if interrupted:
        print(f"interrupted; to go on: python -m revati.sweep resume={folder}", file=sys.stderr)
        return INTERRUPTED
    return 0 if any(row["status"] == "ok" for row in ledger.rows) else 1


def _headline(sweep: Sweep, folder: Path, concurrency: int, done: int) -> str:
    total = sweep.total if sweep.total is not None else "all"
    resumed = f", {done} of them done before" if done else ""
    engines = " and ".join(sweep.engines)
    return (
        f"{sweep.problem.model.name} on {sweep.problem.gpu} with {engines}: {total} trials"
        f"{resumed} by {sweep.algorithm} over {', '.join(sweep.space.domains)}; "
        f"{len(sweep.workload)} requests each, {concurrency} at a time.\n"
        f"The first trial of each engine setting includes an engine start, about a minute.\nOutput: {folder}"
    )


def _proposer(sweep: Sweep, config: DictConfig, done: int) -> Proposer:
    # Sampling with the seed of the first run would only propose what is in the ledger already.
    optuna = sweep.algorithm in ("tpe", "nsga2")
    return make_proposer(
        sweep.algorithm,
        sweep.space,
        sweep.objective,
        sweep.num_trials or 0,
        seed=config.seed + (done if optuna else 0),
        startup=config.search.startup_trials,
        population=config.search.population_size,
    )


def _batch(algorithm: str, population: int) -> int:
    """Points to propose at a time: all that are known beforehand, few where results guide the next."""
    return {"grid": 1 << 30, "random": 1 << 30, "nsga2": population}.get(algorithm, 4)
