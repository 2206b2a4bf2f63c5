"""Errors of predictions against measured cases, and how they are summed up."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from revati.validate.metrics import METRICS
from revati.validate.predictions import Prediction, Predictions
from revati.validate.runs import Case


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one predictor in one metric over some cases; NaN where there is nothing to compare."""

    mean_abs_pct: float
    bias_pct: float
    worst_pct: float  # the error of the largest absolute value, with its sign
    worst_case: str
    count: int


def error_pct(case: Case, prediction: Prediction | None, metric: str) -> float:
    """(predicted - measured) / measured in percent, NaN where one of them is missing."""
    predicted = prediction.metrics.get(metric, math.nan) if prediction else math.nan
    measured = case.measured(metric)
    return (predicted / measured - 1) * 100 if measured else math.nan


def summed_up(cases: Iterable[Case], predictions: Mapping[str, Prediction], metric: str) -> Errors:
    """Errors of one predictor over cases."""
    errors = {case.name: error_pct(case, predictions.get(case.name), metric) for case in cases}
    errors = {name: error for name, error in errors.items() if not math.isnan(error)}
    if not errors:
        return Errors(math.nan, math.nan, math.nan, "", 0)
    worst = max(errors, key=lambda name: abs(errors[name]))
    absolute = [abs(error) for error in errors.values()]
    return Errors(
        sum(absolute) / len(absolute),
        sum(errors.values()) / len(errors),
        errors[worst],
        worst,
        len(errors),
    )


def is_inside(case: Case, prediction: Prediction | None, metric: str) -> bool | None:
    """Whether a prediction lies between the lowest and the highest repeat; None if these don't differ."""
    values = case.values(metric)
    predicted = prediction.metrics.get(metric) if prediction else None
    if predicted is None or math.isnan(predicted) or len(set(values)) < 2:
        return None
    return min(values) <= predicted <= max(values)


def chance_inside(case: Case, metric: str) -> float:
    """Probability that one more real run lies between the lowest and the highest of n: (n - 1) / (n + 1)."""
    count = len(case.values(metric))
    return (count - 1) / (count + 1)


def is_beyond(case: Case, prediction: Prediction | None, metric: str, limit_pct: float) -> bool:
    """Whether a prediction's error exceeds a limit."""
    return abs(error_pct(case, prediction, metric)) > limit_pct


def chance_beyond(case: Case, metric: str, limit_pct: float) -> float:
    """Probability that one more real run's error does, as often as those of the repeats do."""
    errors = case.repeat_errors_pct(metric)
    return sum(error > limit_pct for error in errors) / len(errors)


def write_errors(cases: Sequence[Case], predictions: Predictions, path: Path) -> None:
    """Write validation.csv, a row a case, metric and predictor; a skipped case is one row with its reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ("case", "dev", "predictor", "metric", "repeats", "measured", "low", "high", "noise_pct")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*columns, "predicted", "error_pct", "inside"))
        for case in cases:
            for predictor, by_case in predictions.items():
                start = (case.name, int(case.dev), predictor)
                if (prediction := by_case.get(case.name)) is None:
                    continue
                if prediction.skipped:
                    writer.writerow((*start, f"skipped: {prediction.skipped}", *[""] * 8))
                    continue
                for metric in METRICS:
                    if metric in prediction.metrics and (values := case.values(metric)):
                        inside = is_inside(case, prediction, metric)
                        numbers = (
                            case.measured(metric),
                            min(values),
                            max(values),
                            case.noise_pct(metric),
                            prediction.metrics[metric],
                            error_pct(case, prediction, metric),
                        )
                        written = ("" if math.isnan(number) else f"{number:.6g}" for number in numbers)
                        writer.writerow(
                            (*start, metric, len(values), *written, "" if inside is None else int(inside))
                        )
