"""What emulation and baselines predict for the measured cases."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from revati.compact import without_token_times, write_compact
from revati.deployment.metrics import summarize
from revati.spec import DeploymentSpec, HostSpec
from revati.validate import kept_steps
from revati.validate.metrics import KV_METRIC
from revati.validate.runs import Case, Unsupported, ValidationError
from revati.workload import Workload

EMULATED = "emulated"
SKIPPED = "skipped"
CSV_COLUMNS = ("case", "metric", "value")


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted metrics of a case; `skipped` says why there are none, `setting` how they came about."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""
    setting: str = ""


# Predictions by predictor and case
Predictions = Mapping[str, Mapping[str, Prediction]]
Emulate = Callable[[DeploymentSpec, Workload, Path], Any]


def emulate_all(
    cases: Sequence[Case],
    emulate: Emulate,
    host: HostSpec,
    out: Path,
    *,
    jobs: int = 1,
    repeats: int = 1,
    report: Callable[[str], None] = print,
) -> dict[str, Prediction]:
    """Emulate every case; <out>/emulated/<case> keeps requests, the first repeat's steps and a description.

    Args:
        emulate: runs one deployment in a folder of its own, <out>/trials/<case>.
        jobs: emulations at a time.
        repeats: how often; other seeds draw other host times.
        report: told of each case when it is done.
    """

    def one(case: Case) -> Prediction:
        prediction = emulate_case(case, emulate, host, out, repeats)
        report(f"  {case.name}: {f'skipped: {prediction.skipped}' if prediction.skipped else 'ok'}")
        return prediction

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip((case.name for case in cases), pool.map(one, cases), strict=True))


def emulate_case(case: Case, emulate: Emulate, host: HostSpec, out: Path, repeats: int = 1) -> Prediction:
    """Emulate one measured case; a prediction is the median of its repeats."""
    kept = out / EMULATED / case.name
    try:
        spec = case.spec(host)
    except Unsupported as reason:
        return _keep(kept, {SKIPPED: str(reason)})
    if kept.is_dir():
        shutil.rmtree(kept)
    for repeat in range(repeats):
        ending = f"_rep{repeat + 1}" if repeat else ""
        trial = out / "trials" / f"{case.name}{ending}"
        result = emulate(replace(spec, seed=repeat), case.workload, trial)
        if result.status != "ok":
            return _keep(kept, {SKIPPED: f"{result.status}: {' '.join(result.reason.split())}"})
        requests = pq.read_table(result.requests_path)
        write_compact(
            without_token_times(requests) if repeat else requests, kept / f"requests{ending}.parquet"
        )
        if not repeat and (timeline := trial / "phases.parquet").is_file():
            kept_steps.keep_steps(timeline, kept / kept_steps.FILE)
    description = {
        "host": case.calibrated.base if case.calibrated else spec.host.name,
        "host_calibrated_on": list(case.calibrated.runs) if case.calibrated else [],
        "host_mode": spec.host.mode,
        "num_gpus": spec.num_gpus,
        KV_METRIC: result.kv_cache_blocks,
        "provenance": result.provenance,
    }
    return _keep(kept, description)


def stored(cases: Sequence[Case], out: Path) -> dict[str, Prediction]:
    """Read back what an earlier `emulate_all` kept."""
    return {case.name: _read_kept(out / EMULATED / case.name) for case in cases}


def _keep(folder: Path, description: Mapping[str, Any]) -> Prediction:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(description, indent=1) + "\n")
    return _read_kept(folder)


def _read_kept(folder: Path) -> Prediction:
    if not (folder / "run.json").is_file():
        return Prediction(skipped=f"not emulated yet: no {folder}")
    description = json.loads((folder / "run.json").read_text())
    if SKIPPED in description:
        return Prediction(skipped=description[SKIPPED])
    repeats = [
        summarize(pq.read_table(path), description["num_gpus"])
        for path in sorted(folder.glob("requests*.parquet"))
    ]
    metrics = {name: _median([one[name] for one in repeats]) for name in repeats[0]}
    setting = f"host time from {description['host_mode']} {description['host']}"
    if calibrated_on := description.get("host_calibrated_on"):
        own = folder.name in calibrated_on
        setting += (
            ", its stages on the case's own step log"
            if own
            else ", calibrated on other runs of the same engine"
        )
    return Prediction(metrics | {KV_METRIC: float(description[KV_METRIC])}, setting=setting)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def read_csv(path: Path) -> dict[str, Prediction]:
    """Read a baseline's predictions: case, metric, value; metric `skipped` has the reason as its value.

    Raises:
        ValidationError: other columns, or a value that is no number.
    """
    metrics: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != CSV_COLUMNS:
            raise ValidationError(f"{path}: has columns {reader.fieldnames}; needs {', '.join(CSV_COLUMNS)}")
        for row in reader:
            if row["metric"] == SKIPPED:
                skipped[row["case"]] = row["value"]
                continue
            try:
                metrics.setdefault(row["case"], {})[row["metric"]] = float(row["value"])
            except ValueError:
                raise ValidationError(
                    f"{path}: {row['metric']} of {row['case']} is {row['value']!r}, no number"
                ) from None
    found: dict[str, Prediction] = {case: Prediction(values) for case, values in metrics.items()}
    return found | {case: Prediction(skipped=reason) for case, reason in skipped.items()}


def write_csv(predictions: Mapping[str, Prediction], path: Path) -> None:
    """Write what `read_csv` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for case, prediction in predictions.items():
            if prediction.skipped:
                writer.writerow((case, SKIPPED, prediction.skipped))
            writer.writerows((case, name, f"{value:.6g}") for name, value in prediction.metrics.items())
