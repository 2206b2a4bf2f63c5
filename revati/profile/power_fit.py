"""Fit the power model of a GPU's description to steps that ran under the power limit.

    python -m revati.profile.power_fit gpu=h200

Reads ``kernel_db/gpu=NAME/sustained.json`` (`revati.profile.sustained`), prints the fitted ``power:`` block
for ``conf/gpu/NAME.yaml``, and what the present and the fitted parameters leave unexplained. The limit, the
idle power, the exponent and the time constant are given: sustained steps don't tell them from the rest.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from revati import paths
from revati.interception.gpu import GpuDescription, PowerModel, load_gpu
from revati.profile.sustained import FILE, HIDDEN, INTERMEDIATE, LAYERS, Case, Sustained, read
from revati.timing import db
from revati.timing.estimate import Estimate, RankShape
from revati.timing.power import demand
from revati.timing.timer import KernelTimer

# Parameter → bounds; the others of `PowerModel` stay.
FITTED = {
    "gemm_flops_w": (200.0, 2500.0),
    "gemm_bytes_w": (0.0, 1500.0),
    "attention_bytes_w": (0.0, 2000.0),
    "attention_flops_w": (0.0, 2500.0),
    "gemm_sensitivity": (0.2, 1.0),
    "attention_sensitivity": (0.0, 1.0),
}
PRIOR = 0.02  # how many residuals' worth a parameter's doubling is; keeps what no case tells where it is
SHAPE = RankShape(HIDDEN, INTERMEDIATE, 32, 32, 128, 32000, 32)
PRODUCTS = ((3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
SETTLED_US = 400e3  # several time constants


def layer(timer: KernelTimer, case: Case) -> tuple[list[Estimate], list[Estimate]]:
    """A layer's attention kernels and products, at full clock."""
    attention, products = [], []
    if case.attention:
        main, combine = timer.attention(np.array(case.query_lens), np.array(case.context_lens))
        attention = [main, combine._replace(kind="other", flops=0.0)]
    if case.products:
        tokens = sum(case.query_lens)
        products = [timer.gemm(tokens, n, k, "bfloat16", "bfloat16") for n, k in PRODUCTS]
    return attention, products


@dataclass(frozen=True, slots=True)
class Part:
    """A layer's attention or its products: time at full clock, what of it follows the clock, energy."""

    us: float
    sensitive_us: float
    energy_uj: float

    @classmethod
    def of(cls, gpu: GpuDescription, kernels: list[Estimate]) -> Part:
        us = [one.duration_us for one in kernels]
        needs = [demand(gpu, one) for one in kernels]
        return cls(
            sum(us),
            sum(t * sensitivity for t, (_, sensitivity) in zip(us, needs, strict=True)),
            sum(t * watts for t, (watts, _) in zip(us, needs, strict=True)),
        )


def slowdowns(power: PowerModel, parts: tuple[Part, Part], steps: int) -> tuple[float, float]:
    """The last of ``steps`` steps from a cool start: time of (attention, products) over that at full clock.

    Averages the power and slows down as the native core does; 1 where there are no kernels.
    """
    average_w, times_us = power.idle_w, [0.0, 0.0]
    for _ in range(steps):
        times_us = [0.0, 0.0]
        for _ in range(LAYERS):
            for i, part in enumerate(parts):
                if part.us:
                    us = part.us + part.sensitive_us * (power.stretch(average_w) - 1.0)
                    remaining = math.exp(-us / (power.time_constant_ms * 1e3))
                    average_w += (part.energy_uj / part.us - average_w) * (1.0 - remaining)
                    times_us[i] += us
    attention, products = (
        us / (LAYERS * part.us) if part.us else 1.0 for us, part in zip(times_us, parts, strict=True)
    )
    return attention, products


def expected(power: PowerModel, parts: tuple[Part, Part]) -> tuple[float, float]:
    """Sustained over rested time of (attention, products)."""
    settled = math.ceil(SETTLED_US / (LAYERS * sum(part.us for part in parts)))
    hot, cool = slowdowns(power, parts, settled), slowdowns(power, parts, 1)
    return hot[0] / cool[0], hot[1] / cool[1]


def observed(found: list[Sustained]) -> list[tuple[Case, float, float]]:
    """(case, sustained over rested time of its attention, of its products) of each kind of step with both."""
    rested = {one.case.name: one for one in found if one.case.rest_s}
    rows = []
    for one in found:
        if one.case.rest_s or one.case.name not in rested:
            continue
        cool = rested[one.case.name]
        attention = one.attention_ms / cool.attention_ms if one.case.attention else 1.0
        hot_ms, cool_ms = one.step_ms - one.attention_ms, cool.step_ms - cool.attention_ms
        rows.append((one.case, attention, hot_ms / cool_ms if one.case.products else 1.0))
    return rows


class Fit:
    """Residuals of parameters, and the parameters that make them small."""

    def __init__(self, gpu: GpuDescription, timer: KernelTimer, found: list[Sustained]) -> None:
        assert gpu.power is not None
        self._gpu, self._start = gpu, gpu.power
        self.rows = observed(found)
        self._layers = [layer(timer, case) for case, _, _ in self.rows]

    def residuals(self, power: PowerModel) -> list[tuple[str, float, float]]:
        """(case, attention's and products' predicted over observed slowdown, less 1)."""
        gpu = replace(self._gpu, power=power)
        predicted = [
            expected(power, (Part.of(gpu, attention), Part.of(gpu, products)))
            for attention, products in self._layers
        ]
        return [
            (case.name, a / seen_a - 1.0, p / seen_p - 1.0)
            for (case, seen_a, seen_p), (a, p) in zip(self.rows, predicted, strict=True)
        ]

    def fit(self) -> PowerModel:
        start = np.array([getattr(self._start, name) for name in FITTED])

        def cost(scale: NDArray[np.float64]) -> NDArray[np.float64]:
            flat = [value for _, *pair in self.residuals(self._with(start * scale)) for value in pair]
            return np.array([*flat, *(PRIOR * np.log2(scale))])

        low, high = (np.array([bounds[i] for bounds in FITTED.values()]) for i in (0, 1))
        bounds = (np.maximum(low / start, 0.1), high / start)
        return self._with(start * least_squares(cost, np.ones(len(start)), bounds=bounds).x)

    def _with(self, values: NDArray[np.float64]) -> PowerModel:
        return replace(self._start, **{n: float(v) for n, v in zip(FITTED, values, strict=True)})


def root_mean_square(residuals: list[tuple[str, float, float]]) -> float:
    return float(np.sqrt(np.mean([value**2 for _, *pair in residuals for value in pair])))


def main(arguments: list[str]) -> int:
    gpu = next((a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")), "h200")
    description = load_gpu(gpu)
    if description.power is None:
        print(f"conf/gpu/{gpu}.yaml has no power: block to start from", file=sys.stderr)
        return 2
    timer = KernelTimer(paths.kernel_db_dir(), gpu, SHAPE)
    fit = Fit(description, timer, read(db.partition(paths.kernel_db_dir(), gpu) / FILE))
    fitted = fit.fit()
    before, after = fit.residuals(description.power), fit.residuals(fitted)
    print(
        f"{'case':20} {'slowdown seen':>20} {'present error':>20} {'fitted error':>20}  (attention, products)"
    )
    for (case, a, p), (_, *now), (_, *then) in zip(fit.rows, before, after, strict=True):
        numbers = f"{a:9.3f} {p:10.3f} {now[0]:+9.1%} {now[1]:+10.1%} {then[0]:+9.1%} {then[1]:+10.1%}"
        print(f"{case.name:20} {numbers}")
    print(f"root mean square: present {root_mean_square(before):.1%}, fitted {root_mean_square(after):.1%}\n")
    block = {name: round(value, 3) for name, value in asdict(fitted).items()}
    print(yaml.safe_dump({"power": block}, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
