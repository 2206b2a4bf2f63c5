"""Which point to try next: grid, random, Optuna's TPE and NSGA-II."""

from __future__ import annotations

import math
import random
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from revati.search.errors import unknown
from revati.search.objective import Objective
from revati.search.space import ENGINE, Choice, JointSpace, Point, Range, SearchSpace, point_key

ALGORITHMS = ("grid", "random", "tpe", "nsga2")

# Draws that bring nothing new before a space counts as exhausted.
_MAX_REPEATS = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a point, as a sampler learns it.

    ``values``: the objectives', None if the trial gave none (infeasible or failed).
    ``violations``: one a bound of the SLO, at most 0 where it is kept.
    """

    values: tuple[float, ...] | None
    violations: tuple[float, ...]


class Proposer(Protocol):
    """Proposes distinct points; learns what became of them."""

    def propose(self, count: int) -> list[Point]:
        """At most ``count`` points that were neither proposed nor told before; empty: no more exist."""

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Report a finished point, proposed by this object or by an earlier run of the sweep."""


class ListProposer:
    """Points that are known beforehand: a grid, or random draws."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = {point_key(point): point for point in points}

    def propose(self, count: int) -> list[Point]:
        keys = list(self._points)[:count]
        return [self._points.pop(key) for key in keys]

    def tell(self, point: Point, outcome: Outcome) -> None:
        self._points.pop(point_key(point), None)


class OptunaProposer:
    """An Optuna sampler behind ask and tell, kept from proposing a point twice.

    Infeasible and failed points are told as complete with the worst values and a broken constraint:
    a trial told as failed would be ignored by the samplers, and proposed again and again.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        algorithm: str,
        *,
        seed: int,
        startup: int,
        population: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._optuna = optuna
        self._space = space
        self._bounds = len(objective.slo)
        self._worst = [-math.inf if direction == "max" else math.inf for direction in objective.directions]
        self._distributions = {name: _distribution(domain) for name, domain in space.domains.items()}
        self._asked: dict[Any, Any] = {}  # point → its unfinished Optuna trial
        self._told: dict[Any, Outcome] = {}
        self._rng = random.Random(seed)
        sampler: Any
        if algorithm == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
        else:
            sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        names = {"max": "maximize", "min": "minimize"}
        self._study = optuna.create_study(
            sampler=sampler, directions=[names[direction] for direction in objective.directions]
        )

    def propose(self, count: int) -> list[Point]:
        points: list[Point] = []
        for _ in range(count):
            point = self._ask()
            if point is None:
                break
            points.append(point)
        return points

    def tell(self, point: Point, outcome: Outcome) -> None:
        key = point_key(point)
        self._told[key] = outcome
        trial = self._asked.pop(key, None)
        if trial is None:
            # Of an earlier run: an asked trial with these parameters goes through the same door.
            self._study.enqueue_trial(self._to_params(point))
            trial = self._study.ask(self._distributions)
        self._finish(trial, outcome)

    def _ask(self) -> Point | None:
        for _ in range(20):
            trial = self._study.ask(self._distributions)
            point = self._to_point(trial.params)
            key = point_key(point)
            if key in self._told:
                self._finish(trial, self._told[key])
            elif key in self._asked:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            else:
                self._asked[key] = trial
                return point
        return self._ask_unseen()

    def _ask_unseen(self) -> Point | None:
        """A random new point, for when the sampler has settled on those that it knows."""
        for _ in range(_MAX_REPEATS):
            point = self._space.draw(self._rng)
            key = point_key(point)
            if key not in self._told and key not in self._asked:
                self._study.enqueue_trial(self._to_params(point))
                self._asked[key] = self._study.ask(self._distributions)
                return point
        return None

    def _finish(self, trial: Any, outcome: Outcome) -> None:
        if outcome.values is None or any(math.isnan(value) for value in outcome.values):
            values, violations = self._worst, [math.inf] * max(self._bounds, 1)
        else:
            values = list(outcome.values)
            violations = list(outcome.violations) or [0.0]
        for index, violation in enumerate(violations):
            trial.set_constraint(str(index), min(violation, 1e9))
        self._study.tell(trial, values)

    def _to_point(self, params: dict[str, Any]) -> Point:
        return self._space.canonical(
            {
                name: domain.values[params[name]] if isinstance(domain, Choice) else params[name]
                for name, domain in self._space.domains.items()
            }
        )

    def _to_params(self, point: Point) -> dict[str, Any]:
        return {
            name: _index(domain, point[name]) if isinstance(domain, Choice) else point[name]
            for name, domain in self._space.domains.items()
        }


class EngineProposers:
    """A proposer per engine, taking turns: engines share no knobs that a sampler could learn from."""

    def __init__(self, proposers: dict[str, Proposer]) -> None:
        self._proposers = proposers
        self._turns = deque(proposers)

    def propose(self, count: int) -> list[Point]:
        points: list[Point] = []
        while self._turns and len(points) < count:
            engine = self._turns.popleft()
            share = math.ceil((count - len(points)) / (len(self._turns) + 1))
            found = self._proposers[engine].propose(share)
            points += [{ENGINE: engine, **point} for point in found]
            if found:  # else it has no more
                self._turns.append(engine)
        return points

    def tell(self, point: Point, outcome: Outcome) -> None:
        knobs = {name: value for name, value in point.items() if name != ENGINE}
        self._proposers[point[ENGINE]].tell(knobs, outcome)


def make_proposer(
    algorithm: str,
    space: SearchSpace,
    objective: Objective,
    num_trials: int,
    *,
    seed: int,
    startup: int = 10,
    population: int = 12,
) -> Proposer:
    """The proposer of that name.

    Raises:
        ConfigError: no such algorithm, or a space that it cannot search.
    """
    if isinstance(space, JointSpace):
        share = math.ceil(num_trials / len(space.parts))
        return EngineProposers(
            {
                engine: make_proposer(
                    algorithm, part, objective, share, seed=seed, startup=startup, population=population
                )
                for engine, part in space.parts.items()
            }
        )
    if algorithm == "grid":
        return ListProposer(list(space.grid()))
    if algorithm == "random":
        return ListProposer(_draw_distinct(space, num_trials, random.Random(seed)))
    if algorithm in ALGORITHMS:
        return OptunaProposer(space, objective, algorithm, seed=seed, startup=startup, population=population)
    raise unknown("search algorithm", algorithm, ALGORITHMS)


def _draw_distinct(space: SearchSpace, count: int, rng: random.Random) -> list[Point]:
    points: dict[Any, Point] = {}
    repeats = 0
    while len(points) < count and repeats < _MAX_REPEATS:
        point = space.draw(rng)
        repeats = repeats + 1 if point_key(point) in points else 0
        points.setdefault(point_key(point), point)
    return list(points.values())


def _index(domain: Choice, value: Any) -> int:
    """The value's place; a canonical point's value that is none of the choices may take any."""
    return domain.values.index(value) if value in domain.values else 0


def _distribution(domain: Choice | Range) -> Any:
    import optuna.distributions as distributions

    if isinstance(domain, Choice):
        # By index: ordered numbers keep their order, and any value can stand in a list.
        return distributions.IntDistribution(0, len(domain.values) - 1)
    if domain.integer:
        return distributions.IntDistribution(
            int(domain.low), int(domain.high), log=domain.log, step=1 if domain.log else domain.step or 1
        )
    return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
