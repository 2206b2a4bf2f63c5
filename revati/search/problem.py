"""What is searched: everything that a trial shares with the others, and how a point becomes a spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from revati.search.knobs import DEPLOYMENT_KNOBS, UNQUANTISED
from revati.search.space import ENGINE, Point
from revati.spec import DeploymentSpec, HostSpec, ModelShape


@dataclass(frozen=True, slots=True)
class Problem:
    """The fixed part of every deployment of a sweep."""

    model: ModelShape
    engine: str
    engine_args: dict[str, Any]
    gpu: str
    host: HostSpec
    num_gpus: int  # budget of a deployment
    timing_source: str = "kernel_db"
    timing_require: str | None = None
    seed: int = 0

    def spec(self, point: Point) -> DeploymentSpec:
        """The deployment that a point stands for; a knob of the point wins over an engine argument.

        A point of another engine has nothing of this one's arguments.
        """
        point = dict(point)
        name = point.pop(ENGINE, self.engine)
        arguments = self.engine_args if name == self.engine else {}
        deployment = {name: value for name, value in point.items() if name in DEPLOYMENT_KNOBS}
        engine = {name: value for name, value in point.items() if name not in DEPLOYMENT_KNOBS}
        engine = {**arguments, **engine}
        if engine.get("quantization") == UNQUANTISED:
            del engine["quantization"]
        return DeploymentSpec(
            engine=name,
            model=self.model,
            gpu=self.gpu,
            host=self.host,
            engine_args=engine,
            timing_source=self.timing_source,
            timing_require=self.timing_require,
            seed=self.seed,
            **deployment,
        )

    def over_budget(self, spec: DeploymentSpec) -> str | None:
        """Why the deployment needs more GPUs than there are, None if it does not."""
        if spec.num_gpus <= self.num_gpus:
            return None
        return f"needs {spec.num_gpus} GPUs, the budget is num_gpus={self.num_gpus}"
