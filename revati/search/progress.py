"""What a sweep says on the terminal: one line per finished trial, and the best so far."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from revati.search.objective import Objective
from revati.search.space import SearchSpace
from revati.spec import SCHEDULER_KNOBS, DeploymentSpec

Row = Mapping[str, Any]

_SHORT_NAMES = {"tensor_parallel_size": "tp", "pipeline_parallel_size": "pp"}
_SHORT_UNITS = (
    ("output_throughput_tok_per_s_per_gpu", "tok/s/GPU"),
    ("output_throughput_tok_per_s", "tok/s"),
    ("request_throughput_req_per_s", "req/s"),
    ("goodput_req_per_s", "good req/s"),
)


class Progress:
    """Prints a line per row; remembers the rows to name the best."""

    def __init__(
        self,
        objective: Objective,
        space: SearchSpace,
        total: int | None,
        rows: Iterable[Row] = (),
        stream: TextIO | None = None,
    ) -> None:
        self._objective = objective
        self._names = list(space.domains)
        self._total = total
        self._rows: list[Row] = list(rows)
        self._stream = stream or sys.stdout

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def __call__(self, row: Row) -> None:
        self._rows.append(row)
        ok = [one for one in self._rows if one["status"] == "ok"]
        best = self._objective.best(ok)
        count = f"{len(self._rows)}/{self._total}" if self._total else str(len(self._rows))
        line = f"[{count:>5}] trial {row['trial_id']}  {self.describe(row)}  {outcome(row, self._objective)}"
        if best is not None:
            line += f"  | best {ok[best]['trial_id']}: {format_metric(self._objective.primary, ok[best])}"
        elif ok and self._objective.slo:
            line += "  | none meets the SLO yet"
        self.say(line)

    def engine(self, spec: DeploymentSpec) -> None:
        """Say that an engine is being started, which takes much longer than a trial."""
        settings = {**spec.engine_args, "tensor_parallel_size": spec.tensor_parallel_size}
        shown = {
            name: settings[name] for name in self._names if name in settings and name not in SCHEDULER_KNOBS
        }
        of = f" for {' '.join(f'{_SHORT_NAMES.get(k, k)}={v}' for k, v in shown.items())}" if shown else ""
        self.say(f"        starting {spec.engine}{of}")

    def describe(self, row: Row) -> str:
        known = ((name, row.get(name)) for name in self._names)  # another engine's knobs have no value
        return " ".join(f"{_SHORT_NAMES.get(k, k)}={value}" for k, value in known if value is not None)


def outcome(row: Row, objective: Objective) -> str:
    """The objectives' values, or why there are none."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    text = "  ".join(format_metric(metric, row) for metric in objective.metrics)
    return text if row["slo_met"] else f"{text}  SLO missed"


def format_metric(metric: str, row: Row) -> str:
    value = row.get(metric)
    if value is None or value != value:
        return f"{metric} unknown"
    for name, unit in _SHORT_UNITS:
        if metric == name:
            return f"{value:.4g} {unit}"
    if "_ms_" in metric:
        latency, _, statistic = metric.partition("_ms_")
        return f"{latency.upper()} {statistic} {value:.4g} ms"
    return f"{metric} {value:.4g}"
