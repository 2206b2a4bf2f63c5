"""A search space: for each knob the values it may take."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from revati import paths
from revati.deployment.routers import ROUTINGS
from revati.search.errors import ConfigError, unknown
from revati.search.knobs import DEPLOYMENT_KNOBS, Knob, engine_knobs, knob
from revati.spec import NO_ROUTING

Point = dict[str, Any]
ENGINE = "engine"  # the key of a point in a sweep over several engines
REPLICAS, ROUTING, STAGES = "replicas", "routing", "pipeline_parallel_size"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values; a fixed knob has a single one."""

    values: tuple[Any, ...]

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """A number from low to high, both included; integers in steps, or on a logarithmic scale."""

    low: float
    high: float
    step: int | None = None
    log: bool = False
    integer: bool = True

    def draw(self, rng: random.Random) -> Any:
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        elif self.integer:
            step = self.step or 1
            return int(self.low) + step * rng.randint(0, int(self.high - self.low) // step)
        else:
            value = rng.uniform(self.low, self.high)
        return min(int(self.high), max(int(self.low), round(value))) if self.integer else value


Domain = Choice | Range


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The domains by knob, in the order of the grid: the last varies fastest."""

    domains: dict[str, Domain]

    @property
    def size(self) -> int | None:
        """The number of combinations; None if a range makes it too many to count on."""
        lengths = [len(domain.values) for domain in self.domains.values() if isinstance(domain, Choice)]
        if len(lengths) < len(self.domains):
            return None
        count, routing = math.prod(lengths), self.domains.get(ROUTING)
        if 1 in self.replicas and isinstance(routing, Choice):
            unrouted = count // len(self.replicas)
            count -= unrouted - unrouted // len(routing.values)
        return count

    @property
    def replicas(self) -> tuple[int, ...]:
        """The numbers of replicas that may occur; the ends of a range."""
        return self._counts(REPLICAS)

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of pipeline stages that may occur; the ends of a range."""
        return self._counts(STAGES)

    def _counts(self, name: str) -> tuple[int, ...]:
        domain = self.domains.get(name, Choice((1,)))
        return domain.values if isinstance(domain, Choice) else (int(domain.low), int(domain.high))

    def canonical(self, point: Point) -> Point:
        """The point itself, or the one that is the same deployment: one replica needs no routing."""
        if ROUTING not in point or point.get(REPLICAS, 1) > 1:
            return point
        return {**point, ROUTING: NO_ROUTING}

    def grid(self) -> Iterator[Point]:
        """Every combination, once.

        Raises:
            ConfigError: a knob has a range, of which there are too many values.
        """
        for name, domain in self.domains.items():
            if isinstance(domain, Range):
                raise ConfigError(
                    f"knob {name} is a range; accepted by search=grid: a list of values "
                    "(ranges need search=random, tpe or nsga2)"
                )
        names = list(self.domains)
        values = (domain.values for domain in self.domains.values() if isinstance(domain, Choice))
        seen = set()
        for combination in itertools.product(*values):
            point = self.canonical(dict(zip(names, combination, strict=True)))
            if point_key(point) not in seen:
                seen.add(point_key(point))
                yield point

    def draw(self, rng: random.Random) -> Point:
        return self.canonical({name: domain.draw(rng) for name, domain in self.domains.items()})


@dataclass(frozen=True, slots=True)
class JointSpace(SearchSpace):
    """Several engines' spaces side by side; a point says by its ``engine`` in which it lies.

    ``domains`` are those of all parts, for those who list the knobs.
    """

    parts: dict[str, SearchSpace]

    @classmethod
    def of(cls, parts: dict[str, SearchSpace]) -> JointSpace:
        domains: dict[str, Domain] = {ENGINE: Choice(tuple(parts))}
        for part in parts.values():
            domains |= part.domains
        return cls(domains, parts)

    @property
    def replicas(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(count for part in self.parts.values() for count in part.replicas))

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(count for part in self.parts.values() for count in part.stages))

    @property
    def size(self) -> int | None:
        sizes = [part.size for part in self.parts.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def grid(self) -> Iterator[Point]:
        for engine, part in self.parts.items():
            for point in part.grid():
                yield {ENGINE: engine, **point}

    def draw(self, rng: random.Random) -> Point:
        engine = rng.choice(list(self.parts))
        return {ENGINE: engine, **self.parts[engine].draw(rng)}


def point_key(point: Point) -> tuple[tuple[str, Any], ...]:
    """The point as something hashable, whatever the order of its knobs."""
    return tuple(sorted(point.items()))


def load_space(name: str, engine: str, overrides: Mapping[str, Any]) -> SearchSpace:
    """Read a file of ``search_spaces/`` (or the path of one) and put the overrides in its place.

    Raises:
        ConfigError: no such space, an unknown knob, or a value that a knob does not take.
    """
    if name == "default" and engine != "vllm":
        name = engine
    path = Path(name) if name.endswith(".yaml") else paths.search_spaces_dir() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in paths.search_spaces_dir().glob("*.yaml"))
        raise unknown("search space", name, [*known, "the path of a .yaml file"])
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"search space {path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != {"engine", "knobs"}:
        raise ConfigError(f"search space {path}: accepted keys: engine, knobs (both needed)")
    engines = content["engine"] if isinstance(content["engine"], list) else [content["engine"]]
    if engine not in engines:
        accepted = " or ".join(map(repr, engines))
        raise ConfigError(f"search space {path} is for engine {accepted}, not for {engine!r}")
    knobs = {**(content["knobs"] or {}), **overrides}
    space = SearchSpace({key: parse_domain(engine, key, value) for key, value in knobs.items()})
    require_routing(max(space.replicas), ROUTING in space.domains)
    return space


def require_routing(replicas: int, routed: bool) -> None:
    """Raise ConfigError if there is no routing for several replicas, or one for a single replica."""
    accepted = ", ".join(ROUTINGS)
    if replicas > 1 and not routed:
        raise ConfigError(f"knob replicas={replicas} needs knob routing; accepted: {accepted}")
    if replicas == 1 and routed:
        raise ConfigError("knob routing needs knob replicas; accepted: an integer >= 2, or a list with one")


def load_joint_space(engines: Sequence[str], overrides: Mapping[str, Any]) -> JointSpace:
    """Each engine's default space; an override concerns the engines that have the knob.

    Raises:
        ConfigError: a knob that no engine has, or a value that a knob does not take.
    """
    known = {engine: {**DEPLOYMENT_KNOBS, **engine_knobs(engine)} for engine in engines}
    for name in overrides:
        if not any(name in knobs for knobs in known.values()):
            raise unknown("knob", name, {name: None for knobs in known.values() for name in knobs})
    return JointSpace.of(
        {
            engine: load_space("default", engine, {k: v for k, v in overrides.items() if k in known[engine]})
            for engine in engines
        }
    )


def parse_domain(engine: str, name: str, value: Any) -> Domain:
    """A single value, a list of values, or a mapping with low, high and step or log."""
    turned = knob(engine, name)
    if isinstance(value, Mapping):
        return _parse_range(turned, name, value)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ConfigError(f"knob {name} has no values; accepted: {turned.accepted}, or a list of those")
    checked = tuple(dict.fromkeys(turned.check(name, one) for one in values))
    return Choice(checked)


def _parse_range(turned: Knob, name: str, value: Mapping[str, Any]) -> Range:
    accepted = "{low: …, high: …} with step: … or log: true"
    if turned.type not in (int, float) or turned.choices:
        raise ConfigError(f"knob {name} takes no range; accepted: {turned.accepted}")
    if not {"low", "high"} <= set(value) <= {"low", "high", "step", "log"}:
        raise ConfigError(f"knob {name}: range {dict(value)!r}: accepted: {accepted}")
    low, high = (turned.check(name, value[end]) for end in ("low", "high"))
    step, log = value.get("step"), value.get("log", False)
    good_step = step is None or (isinstance(step, int) and step > 0 and not log and turned.type is int)
    if low > high or not good_step or not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(f"knob {name}: range {dict(value)!r}: accepted: {accepted}, low <= high")
    return Range(low, high, step=step, log=log, integer=turned.type is int)
