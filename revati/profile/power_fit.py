"""Fit the power model of a GPU's description to steps that met the power limit.

    python -m revati.profile.power_fit gpu=h200

Reads ``kernel_db/gpu=NAME/clock.json`` (`revati.profile.clock`), prints the fitted ``power:`` block for
``conf/gpu/NAME.yaml``, and what the present and the fitted parameters leave unexplained of the steps' times
and clocks. The limit and the idle power are given: the GPU says them itself. So is how the clock falls where
no course has samples of it. A table tells how parts of steps followed the clock that was seen.
"""

from __future__ import annotations

import bisect
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from revati import paths
from revati.interception.gpu import GpuDescription, PowerModel, load_gpu
from revati.profile.clock_courses import FILE, HEAD_DIM, KINDS, LAYERS, Course, Kind, Layer, Step, read
from revati.timing import db
from revati.timing.estimate import Estimate, RankShape
from revati.timing.power import demand
from revati.timing.sharing import Beginnings
from revati.timing.timer import KernelTimer

# Parameter → bounds; the others of `PowerModel` stay.
FALL = {
    "time_constant_ms": (50.0, 2000.0),
    "peak_limit_w": (705.0, 900.0),
    "peak_time_constant_ms": (10.0, 200.0),
    "exponent": (0.5, 3.0),
}
KERNELS = {
    "flops_w": (200.0, 2500.0),
    "fp8_flops_w": (200.0, 2500.0),
    "gemm_bytes_w": (0.0, 1500.0),
    "attention_bytes_w": (0.0, 2000.0),
    "gemm_sensitivity": (0.2, 1.0),
    "attention_sensitivity": (0.0, 1.0),
}
PRIOR = 0.02  # how many residuals' worth a parameter's doubling is; keeps what no course tells where it is
VOCABULARY = 32000
CHUNKS = 4  # of a step's layers, that run at one clock
# Seconds since the last rest.  Periods count alike, however many steps they have.
PERIODS_S = (0.045, 0.075, 0.12, 0.2, 0.4, 0.8, 1.2, 2.0)
CLOCK_PERIOD = 3  # from which on samples of the clock are compared: it is reported late
GAP_MS = 5.0  # a rest
SETTLED_MS = 1000.0  # after so long the readings of the power are of what runs
LEAST_GROWTH = 0.05  # of the clock's period, from which on one can tell what follows it
LEVEL_PRIOR = 2.0  # periods' worth of belief in the database's times at full clock


def layer(timer: KernelTimer, kind: Kind) -> tuple[list[Estimate], list[Estimate]]:
    """A layer's attention kernels and products, at full clock."""
    attention, products = [], []
    if kind.attention:
        count = len(kind.query_lens)
        alike = Beginnings([0] * count, [kind.shared_tokens] * count) if kind.shared_tokens else None
        batch = np.array(kind.query_lens), np.array(kind.context_lens)
        main, combine = timer.attention(*batch, beginnings=alike)
        attention = [main, combine._replace(kind="other", flops=0.0)]
    if kind.products:
        tokens = sum(kind.query_lens)
        products = [timer.gemm(tokens, n, k, kind.products, "bfloat16") for n, k in kind.layer.products]
    return attention, products


class Part(NamedTuple):
    """A layer's attention or its products: time at full clock, what of it follows the clock, energy; gaps."""

    us: float
    sensitive_us: float
    energy_uj: float
    gaps_us: float

    @classmethod
    def of(cls, gpu: GpuDescription, kernels: list[Estimate], gap_us: float) -> Part:
        us = [one.duration_us for one in kernels]
        needs = [demand(gpu, one) for one in kernels]
        return cls(
            sum(us),
            sum(t * sensitivity for t, (_, sensitivity) in zip(us, needs, strict=True)),
            sum(t * watts for t, (watts, _) in zip(us, needs, strict=True)),
            gap_us * len(kernels),
        )


class Predicted(NamedTuple):
    """Of a step: milliseconds of its attention and its products, how much longer the clock's period is."""

    attention_ms: float
    products_ms: float
    stretch: float


class Averages:
    """A GPU's average power, quick and slow, from a cool start; as the native core has them."""

    def __init__(self, power: PowerModel) -> None:
        self._power, self.peak_w, self.slow_w = power, power.idle_w, power.idle_w

    def draw(self, watts: float, us: float) -> None:
        self.peak_w += (watts - self.peak_w) * (
            1.0 - math.exp(-us / (self._power.peak_time_constant_ms * 1e3))
        )
        self.slow_w += (watts - self.slow_w) * (1.0 - math.exp(-us / (self._power.time_constant_ms * 1e3)))

    @property
    def stretch(self) -> float:
        return self._power.stretch(self.peak_w, self.slow_w)


def follow(power: PowerModel, parts: dict[str, tuple[Part, Part]], course: Course) -> list[Predicted]:
    """The course's steps as the model has them, each begun when the measured one began."""
    averages, found, end_ms = Averages(power), [], 0.0
    for step in course.steps:
        averages.draw(power.idle_w, max(0.0, step.at_ms - end_ms) * 1e3)
        ms, stretches = [0.0, 0.0], []
        for _ in range(CHUNKS):
            for i, part in enumerate(parts[step.kind]):
                if part.us:
                    stretches.append(averages.stretch)
                    us = (part.us + part.sensitive_us * (stretches[-1] - 1.0)) * LAYERS / CHUNKS
                    gaps_us = part.gaps_us * LAYERS / CHUNKS
                    watts = (part.energy_uj / part.us * us + power.idle_w * gaps_us) / (us + gaps_us)
                    averages.draw(watts, us + gaps_us)
                    ms[i] += (us + gaps_us) / 1e3
        found.append(Predicted(ms[0], ms[1], sum(stretches) / len(stretches)))
        end_ms = step.at_ms + step.step_ms
    return found


class Residual(NamedTuple):
    """Logarithm of measured over predicted in one period of a course, and what it counts."""

    course: str
    card: str
    what: str  # a kind of step's attention or products, or the clock
    value: float
    weight: float


def compare(course: Course, predicted: list[Predicted], full_clock_mhz: float) -> list[Residual]:
    """Of the steps' times by kind and period, counting as much as their share of it, and of the clock."""
    found, since_ms, end_ms = [], 0.0, 0.0
    groups: dict[tuple[str, int], list[tuple[Step, Predicted]]] = {}
    for step, ours in zip(course.steps, predicted, strict=True):
        if step.at_ms > end_ms + GAP_MS:
            since_ms = step.at_ms
        end_ms = step.at_ms + step.step_ms
        if step.at_ms >= course.judged_from_ms:
            period = bisect.bisect(PERIODS_S, (step.at_ms - since_ms) / 1e3)
            groups.setdefault((step.kind, period), []).append((step, ours))
    for (kind, period), pairs in groups.items():
        step_ms = sum(step.step_ms for step, _ in pairs)
        attention_ms = sum(step.attention_ms for step, _ in pairs)
        parts = {
            "attention": (attention_ms, sum(ours.attention_ms for _, ours in pairs)),
            "products": (step_ms - attention_ms, sum(ours.products_ms for _, ours in pairs)),
        }
        for name, (measured, expected) in parts.items():
            if expected:
                what, share = f"{kind} {name}", measured / step_ms
                found.append(
                    Residual(course.name, course.card, what, math.log(measured / expected), math.sqrt(share))
                )
        clocks = [(s.clock_mhz, ours.stretch) for s, ours in pairs if s.clock_mhz]
        if clocks and period >= CLOCK_PERIOD:
            period_ratio = sum(full_clock_mhz / mhz for mhz, _ in clocks) / sum(
                stretch for _, stretch in clocks
            )
            found.append(Residual(course.name, course.card, "clock", math.log(period_ratio), 1.0))
    return found


def less_level(found: list[Residual]) -> list[Residual]:
    """Without what a card's kernels differ from the database's at any clock; that counts a little itself."""
    by_level: dict[tuple[str, str], list[Residual]] = {}
    for one in found:
        by_level.setdefault((one.card, one.what), []).append(one)
    out = []
    for (card, what), these in by_level.items():
        if what == "clock":
            out += these
            continue
        weight = sum(one.weight**2 for one in these)
        prior = LEVEL_PRIOR * weight / len(these)
        level = sum(one.weight**2 * one.value for one in these) / (weight + prior)
        out += [one._replace(value=one.value - level) for one in these]
        out.append(Residual("level", card, what, level, math.sqrt(prior)))
    return out


class Fit:
    """Residuals of parameters, and the parameters that make them small."""

    def __init__(
        self, gpu: GpuDescription, timers: Mapping[Layer, KernelTimer], courses: list[Course]
    ) -> None:
        assert gpu.power is not None
        self._gpu, self._start = gpu, gpu.power
        self._small_w = [
            step.power_w
            for course in courses
            for step in course.steps
            if KINDS[step.kind].small
            and KINDS[step.kind].prompts
            and step.power_w
            and step.at_ms > SETTLED_MS
        ]
        self._courses = [one for one in courses if not any(KINDS[step.kind].small for step in one.steps)]
        used = sorted(
            {step.kind for course in courses for step in course.steps if not KINDS[step.kind].small}
        )
        self._layers = {kind: layer(timers[KINDS[kind].layer], KINDS[kind]) for kind in used}
        self._gap_us = next(iter(timers.values())).launch_gap_us

    def residuals(self, power: PowerModel) -> list[Residual]:
        gpu = replace(self._gpu, power=power)
        parts = {
            kind: (Part.of(gpu, a, self._gap_us), Part.of(gpu, p, self._gap_us))
            for kind, (a, p) in self._layers.items()
        }
        return less_level(
            [
                one
                for course in self._courses
                for one in compare(course, follow(power, parts, course), self._gpu.sm_clock_mhz)
            ]
        )

    def fit(self) -> PowerModel:
        """What small kernels draw is read, since they meet no limit; the others' power shows in the clock."""
        if self._small_w:
            self._start = replace(self._start, other_w=sum(self._small_w) / len(self._small_w))
        sampled = any(step.clock_mhz for course in self._courses for step in course.steps)
        fitted = {**FALL, **KERNELS} if sampled else KERNELS
        names, bounds = tuple(fitted), np.array(list(fitted.values()))
        start = np.array([getattr(self._start, name) for name in names])

        def cost(scale: NDArray[np.float64]) -> NDArray[np.float64]:
            found = self.residuals(self._with(names, start * scale))
            return np.array([*(one.weight * one.value for one in found), *(PRIOR * np.log2(scale))])

        low, high = bounds.T / start
        best = least_squares(cost, np.ones(len(start)), bounds=(np.maximum(low, 0.1), high), diff_step=1e-3)
        return self._with(names, start * best.x)

    def _with(self, names: tuple[str, ...], values: NDArray[np.float64]) -> PowerModel:
        return replace(self._start, **{n: float(v) for n, v in zip(names, values, strict=True)})


def sensitivities(course: Course, full_clock_mhz: float) -> dict[str, float]:
    """By how much attention and products grew in the end, over the growth of the clock's period.

    Of a course of one kind of step whose clock was seen to fall; else nothing.
    """
    first = [step for step in course.steps if step.at_ms < 1e3 * PERIODS_S[0]]
    last = [step for step in course.steps if step.at_ms > SETTLED_MS and step.clock_mhz]
    if len({step.kind for step in course.steps}) > 1 or not first or not last:
        return {}
    grown = full_clock_mhz / statistics.fmean(step.clock_mhz for step in last if step.clock_mhz) - 1.0
    if grown < LEAST_GROWTH:
        return {}
    before, after = (
        (statistics.fmean(s.attention_ms for s in steps), statistics.fmean(s.step_ms for s in steps))
        for steps in (first, last)
    )
    kind, found = KINDS[course.steps[0].kind], {}
    if kind.attention:
        found["attention"] = (after[0] / before[0] - 1.0) / grown
    if kind.products:
        found["products"] = ((after[1] - after[0]) / (before[1] - before[0]) - 1.0) / grown
    return found


def root_mean_square(found: Iterable[Residual]) -> float:
    found = list(found)
    total = sum(one.weight**2 for one in found)
    return math.sqrt(sum((one.weight * one.value) ** 2 for one in found) / total)


def timers_of(gpu: str) -> dict[Layer, KernelTimer]:
    """The kernels of each layer that steps are of."""

    def timer(of: Layer) -> KernelTimer:
        sizes = of.hidden, of.intermediate, of.q_heads, of.kv_heads
        return KernelTimer(paths.kernel_db_dir(), gpu, RankShape(*sizes, HEAD_DIM, VOCABULARY, LAYERS))

    return {of: timer(of) for of in {kind.layer for kind in KINDS.values()}}


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "h200")
    description = load_gpu(gpu)
    if description.power is None:
        print(f"conf/gpu/{gpu}.yaml has no power: block to start from", file=sys.stderr)
        return 2
    courses = read(db.partition(paths.kernel_db_dir(), gpu) / FILE)
    fit = Fit(description, timers_of(gpu), courses)
    fitted = fit.fit()
    before, after = fit.residuals(description.power), fit.residuals(fitted)
    print(f"{'root mean square by course':30} {'present':>8} {'fitted':>8}")
    for name in dict.fromkeys(one.course for one in before):
        now, then = (root_mean_square(r for r in found if r.course == name) for found in (before, after))
        print(f"{name:30} {now:8.1%} {then:8.1%}")
    print(f"{'all':30} {root_mean_square(before):8.1%} {root_mean_square(after):8.1%}\n")
    followed: dict[tuple[str, str], list[float]] = {}
    for course in courses:
        for part, value in sensitivities(course, description.sm_clock_mhz).items():
            followed.setdefault((course.name, part), []).append(value)
    print("growth of a part's time over growth of the clock's period, by card")
    for (name, part), values in sorted(followed.items()):
        print(f"{name:30} {part:10} {' '.join(f'{value:.2f}' for value in values)}")
    block = {name: round(value, 3) for name, value in asdict(fitted).items()}
    print(yaml.safe_dump({"power": block}, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
