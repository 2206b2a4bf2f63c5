"""The output folder of a sweep: what is written, and under which names."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import stat
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from omegaconf import DictConfig

import revati
from revati import environments
from revati.search.build import plain
from revati.search.columns import SHARE_COLUMNS, trials_table
from revati.search.errors import ConfigError
from revati.search.launch import commands, deployment_environment, launch_script
from revati.search.ledger import Ledger
from revati.search.objective import Objective, natural_direction
from revati.search.problem import Problem
from revati.search.progress import format_metric
from revati.search.report import report_html
from revati.search.space import SearchSpace
from revati.workload import Workload

WORKLOAD = "workload.parquet"

# Settings that may change when a sweep is gone on with.
_MAY_CHANGE = {"search.num_trials", "search.max_concurrent", "ray.dashboard", "output_dir"}

_VERSIONS = ("vllm", "torch", "ray", "optuna", "hydra-core", "numpy", "pandas", "pyarrow", "scikit-learn")


def write_config(folder: Path, config: DictConfig, overrides: list[str], workload: Workload) -> None:
    """Write what the sweep is: resolved configuration, command line, versions, seed and requests."""
    target = folder / "config"
    target.mkdir(exist_ok=True)
    _replace(target / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
    _replace(target / "overrides.yaml", yaml.safe_dump(overrides))
    _replace(target / "versions.json", json.dumps(versions(config.seed), indent=2) + "\n")
    workload.to_parquet(folder / WORKLOAD)


def versions(seed: int) -> dict[str, Any]:
    """What has to be the same for the same numbers to come out."""
    found: dict[str, Any] = {"revati": revati.__version__, "python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    for environment in environments.REQUIREMENTS:
        found |= environments.versions(environment)
    return {"seed": seed, "platform": platform.platform(), "packages": found}


def require_same_sweep(folder: Path, config: DictConfig) -> None:
    """Raise ConfigError if the folder's ledger belongs to a sweep with other settings."""
    before = _flatten(yaml.safe_load((folder / "config" / "config.yaml").read_text()))
    now = _flatten(plain(config))
    changed = [
        name for name in {**before, **now} if name not in _MAY_CHANGE and before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a sweep with other {', '.join(changed)}; "
            f"accepted: another output_dir, or changes of {', '.join(sorted(_MAY_CHANGE - {'output_dir'}))}"
        )


def write_results(
    folder: Path,
    config: DictConfig,
    problem: Problem,
    objective: Objective,
    space: SearchSpace,
    ledger: Ledger,
) -> str:
    """Write trials.parquet, pareto.csv, report.html and recommended/; return a summary to print."""
    ok = [
        (point, row) for point, row in zip(ledger.points, ledger.rows, strict=True) if row["status"] == "ok"
    ]
    rows = [row for _, row in ok]
    front = objective.front(rows)
    best = objective.best(rows)
    front_ids = {rows[index]["trial_id"] for index in front}
    table = [{**row, "pareto": row["trial_id"] in front_ids} for row in ledger.rows]
    temporary = folder / "trials.parquet.tmp"
    pq.write_table(trials_table(table), temporary)
    temporary.replace(folder / "trials.parquet")
    recommended = None if best is None else rows[best]
    _write_pareto(folder / "pareto.csv", [rows[index] for index in front], objective, space, recommended)
    spec = None if best is None else problem.spec(ok[best][0])
    served = config.model.hub_id or config.model.name
    script = None if spec is None else launch_script(spec, served, deployment_environment(spec.engine))
    summary = _write_recommended(folder / "recommended", objective, rows, recommended, script)
    if spec is not None:
        _replace(folder / "recommended" / "deployment.json", spec.to_json() + "\n")
        summary += "".join(f"\n  {command}" for command in commands(spec, served))
    _replace(
        folder / "report.html",
        report_html(
            table,
            objective=objective,
            knobs=list(space.domains),
            front=front_ids,
            recommended=None if recommended is None else recommended["trial_id"],
            script=script,
            title=f"{problem.model.name} on {problem.gpu}",
            facts=_facts(config, problem),
        ),
    )
    return summary


def _facts(config: DictConfig, problem: Problem) -> dict[str, str]:
    workload = config.workload
    rate = f", {workload.request_rate_per_s:g} requests/s" if workload.arrivals == "poisson" else ""
    packages = versions(config.seed)["packages"]
    engines = dict.fromkeys(config.engines or [problem.engine])
    return {
        "Model": problem.model.name,
        "GPU": f"{problem.gpu}, at most {problem.num_gpus}",
        "Engine": ", ".join(f"{name} {packages.get(name) or '(not installed here)'}" for name in engines),
        "Workload": f"{workload.name}: {workload.arrivals}, {workload.num_requests} requests{rate}",
        "Search": f"{config.search.algorithm} over {config.search_space}",
        "Host time": f"{problem.host.name}, {problem.host.mode}",
        "Seed": str(config.seed),
        "Revati": revati.__version__,
    }


def _write_pareto(
    path: Path,
    rows: list[dict[str, Any]],
    objective: Objective,
    space: SearchSpace,
    best: dict[str, Any] | None,
) -> None:
    names = ["trial_id", *space.domains, "num_gpus", *objective.metrics]
    names += [name for name in [*objective.slo, *SHARE_COLUMNS] if name not in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "slo_met", "recommended"])
    for row in sorted(rows, key=lambda row: tuple(objective.losses([row])[0])):
        writer.writerow([*(row.get(name) for name in names), row["slo_met"], row is best])
    _replace(path, text.getvalue())


def _write_recommended(
    folder: Path,
    objective: Objective,
    rows: list[dict[str, Any]],
    best: dict[str, Any] | None,
    script: str | None,
) -> str:
    """Write the launch script and why; without a recommendation only the why."""
    folder.mkdir(exist_ok=True)
    launch = folder / "launch.sh"
    if best is None or script is None:
        for stale in (launch, folder / "deployment.json"):
            stale.unlink(missing_ok=True)
        summary = "No recommendation: " + _why_none(objective, rows)
        _replace(folder / "README.md", f"# Nothing to recommend\n\n{summary}\n")
        return summary
    _replace(launch, script)
    launch.chmod(launch.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    metrics = [*objective.metrics, *(name for name in objective.slo if name not in objective.metrics)]
    lines = "\n".join(f"- {format_metric(name, best)}{_bound(objective, name)}" for name in metrics)
    shares = ", ".join(
        f"{name.removeprefix('gpu_time_share_')} {best.get(name) or 0:.0%}" for name in SHARE_COLUMNS
    )
    _replace(
        folder / "README.md",
        f"# Trial {best['trial_id']}\n\n`sh launch.sh` serves it. Best {objective.primary} among the "
        f"Pareto-optimal trials{' that meet the SLO' if objective.slo else ''}. Emulated, not measured:\n\n"
        f"{lines}\n\nGPU time by where its duration comes from: {shares}.\n",
    )
    return f"Recommended: trial {best['trial_id']}, {format_metric(objective.primary, best)}"


def _why_none(objective: Objective, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no trial ran to its end."
    bounds = []
    for name, bound in objective.slo.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        keeping = sum(objective.violations(row)[name] <= 0 for row in rows)
        best = (max if natural_direction(name) == "max" else min)(values, default=float("nan"))
        bounds.append(f"{name}, bound {bound:g}: kept by {keeping} of {len(rows)}, best {best:.4g}")
    return "no trial meets the SLO (" + "; ".join(bounds) + ")."


def _bound(objective: Objective, metric: str) -> str:
    return f" (SLO {objective.slo[metric]:g})" if metric in objective.slo else ""


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
