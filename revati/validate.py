"""Compare emulated with measured runs: ``python -m revati.validate DIR``.

    python -m revati.validate DIR [runs=GLOB] [host=NAME] [mode=table|measured|free] [jobs=N] [out=FOLDER]

DIR holds one folder a measured run: run.json (engine, settings, summary) and requests.parquet (a row a
request). Each run's recorded arrivals and lengths are replayed through an emulated deployment with the
recorded settings. FOLDER (default: outputs/validation) gets validation.csv (run, metric, measured, emulated,
error_pct) and the emulated request tables.

    runs   which of the folders, by name (default: *)
    host   the host table of conf/host (default: h200_xeon_contended, the machines of the shared runs)
    mode   where host time comes from (default: table)
    jobs   runs at a time (default: 1)
"""

from __future__ import annotations

import csv
import fnmatch
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import yaml

from revati import paths
from revati.deployment.metrics import METRIC_COLUMNS, summarize
from revati.spec import HOST_MODES, DeploymentSpec, HostMode, HostSpec, ModelShape
from revati.virtual_time.host_table import known_tables
from revati.workload import Workload

DEFAULT_HOST = "h200_xeon_contended"
KV_METRIC = "kv_cache_blocks"
# Goodput needs an SLO that measured runs don't have; per-GPU throughput has the error of throughput.
METRICS = (
    *(name for name in METRIC_COLUMNS if "goodput" not in name and not name.endswith("_per_gpu")),
    KV_METRIC,
)
SHOWN = {
    "output_throughput_tok_per_s": "tok/s",
    "tpot_ms_p50": "TPOT p50",
    "tpot_ms_mean": "TPOT mean",
    "tpot_ms_p99": "TPOT p99",
    "itl_ms_p50": "ITL p50",
    "ttft_ms_p50": "TTFT p50",
    "ttft_ms_mean": "TTFT mean",
    "ttft_ms_p99": "TTFT p99",
    "e2e_ms_mean": "E2E mean",
    KV_METRIC: "KV",
}
# Recorded by a run under its resolved settings, because the defaults depend on how the engine was started.
RESOLVED_SETTINGS = ("max_num_seqs", "max_num_batched_tokens")


class ValidationError(ValueError):
    """A wrong argument; the message names what is accepted."""


class Unsupported(Exception):
    """A measured run that cannot be emulated yet; the message says why."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A measured run: its description, its metrics, the requests to replay."""

    name: str
    folder: Path
    description: dict[str, Any]
    metrics: dict[str, float]

    @property
    def group(self) -> str:
        """The run that this one repeats (itself if it repeats none)."""
        return re.sub(r"_rep\d+$", "", self.name)

    @property
    def workload(self) -> Workload:
        return Workload.from_trace(self.folder / "requests.parquet", self.name)

    def spec(self, host: HostSpec) -> DeploymentSpec:
        """The deployment that this run measured.

        Raises:
            Unsupported: settings that the emulation doesn't cover yet, or a model of unknown shape.
        """
        content = self.description
        if content["engine"] != "vllm":
            raise Unsupported(f"engine {content['engine']}: only vllm is emulated so far")
        arguments = {
            name: value
            for name, value in content["engine_args"].items()
            if name not in ("tensor_parallel_size", "pipeline_parallel_size")
        }
        for name in RESOLVED_SETTINGS:
            arguments.setdefault(name, content["resolved"][name])
        return DeploymentSpec(
            engine=content["engine"],
            model=_model_shape(content["model"]),
            gpu=content["gpu"],
            host=host,
            tensor_parallel_size=content["tensor_parallel_size"],
            pipeline_parallel_size=content["pipeline_parallel_size"],
            engine_args=arguments,
        )


@dataclass(slots=True)
class Comparison:
    """A measured run beside its emulation; `skipped` says why there is none."""

    run: MeasuredRun
    emulated: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    wall_s: float = 0.0

    def error_pct(self, metric: str) -> float:
        """(emulated - measured) / measured in percent; NaN where one of them is missing."""
        measured, emulated = self.run.metrics.get(metric), self.emulated.get(metric)
        if not measured or emulated is None:
            return math.nan
        return (emulated - measured) / measured * 100


Emulate = Callable[[DeploymentSpec, Workload, Path], Any]


def read_runs(folder: Path, pattern: str = "*") -> list[MeasuredRun]:
    """Read the measured runs of a folder whose names match a pattern.

    Raises:
        ValidationError: there is no such folder, or no run in it matches.
    """
    if not folder.is_dir():
        raise ValidationError(f"{folder} is no folder; give one with a folder a measured run")
    names = sorted(path.parent.name for path in folder.glob("*/run.json"))
    chosen = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if not chosen:
        raise ValidationError(f"runs={pattern} matches none of {folder}: {', '.join(names) or 'no run.json'}")
    runs = []
    for name in chosen:
        description = json.loads((folder / name / "run.json").read_text())
        table = pq.read_table(folder / name / "requests.parquet")
        metrics = summarize(table, int(description["num_gpus"]))
        metrics[KV_METRIC] = float(description["resolved"]["num_gpu_blocks"])
        runs.append(MeasuredRun(name, folder / name, description, metrics))
    return runs


def compare(run: MeasuredRun, emulate: Emulate, host: HostSpec, out: Path) -> Comparison:
    """Emulate one measured run and keep its requests as <out>/<run>/requests.parquet."""
    try:
        spec = run.spec(host)
    except Unsupported as reason:
        return Comparison(run, skipped=str(reason))
    result = emulate(spec, run.workload, out / run.name)
    if result.status != "ok":
        return Comparison(run, skipped=f"{result.status}: {' '.join(result.reason.split())}")
    emulated = summarize(pq.read_table(result.requests_path), spec.num_gpus)
    emulated[KV_METRIC] = float(result.kv_cache_blocks)
    return Comparison(run, emulated, wall_s=result.wall_s)


def write_csv(comparisons: Iterable[Comparison], path: Path) -> None:
    """Write validation.csv; a skipped run is one row whose metric names the reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("run", "metric", "measured", "emulated", "error_pct"))
        for comparison in comparisons:
            name = comparison.run.name
            if comparison.skipped:
                writer.writerow((name, f"skipped: {comparison.skipped}", "", "", ""))
                continue
            for metric in METRICS:
                measured, emulated = comparison.run.metrics[metric], comparison.emulated[metric]
                error = f"{comparison.error_pct(metric):.3f}"
                writer.writerow((name, metric, f"{measured:.6g}", f"{emulated:.6g}", error))


def noise_pct(runs: Sequence[MeasuredRun], metric: str) -> float:
    """The largest deviation of repeated measured runs from their mean in percent; NaN without repeats."""
    values = [run.metrics[metric] for run in runs]
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return max(abs(value - mean) for value in values) / mean * 100


def format_table(comparisons: Sequence[Comparison], all_runs: Sequence[MeasuredRun]) -> str:
    """Lay out the errors: a row a run, the noise of repeats below them, mean absolute errors at the end."""
    width = max(len(c.run.name) for c in comparisons) + 2
    lines = [" " * width + "".join(f"{title:>11}" for title in SHOWN.values()) + "   error %"]
    groups: dict[str, list[MeasuredRun]] = {}
    for run in all_runs:
        groups.setdefault(run.group, []).append(run)
    for index, comparison in enumerate(comparisons):
        row = comparison.run.name.ljust(width)
        if comparison.skipped:
            lines.append(f"{row}  skipped: {comparison.skipped}")
        else:
            stalled = (
                "  frontend stall: don't judge tails"
                if comparison.run.description.get("frontend_stall")
                else ""
            )
            lines.append(row + "".join(_cell(comparison.error_pct(m), "+") for m in SHOWN) + stalled)
        group = comparison.run.group
        last = index + 1 == len(comparisons) or comparisons[index + 1].run.group != group
        if last and len(groups[group]) > 1:
            floor = "".join(_cell(noise_pct(groups[group], m), "±") for m in SHOWN)
            lines.append("  noise of repeats".ljust(width) + floor)
    done = [c for c in comparisons if not c.skipped]
    for title, chosen in (
        ("mean |error|, 1 GPU", [c for c in done if c.run.description["num_gpus"] == 1]),
        ("mean |error|, all", done),
    ):
        if chosen:
            means = (mean_absolute_error_pct(chosen, m) for m in SHOWN)
            lines.append(title.ljust(width) + "".join(_cell(mean, "") for mean in means))
    return "\n".join(lines)


def mean_absolute_error_pct(comparisons: Sequence[Comparison], metric: str) -> float:
    """Mean of the absolute errors in percent over runs that have the metric; NaN if none has."""
    errors = [abs(e) for c in comparisons if not math.isnan(e := c.error_pct(metric))]
    return sum(errors) / len(errors) if errors else math.nan


def _cell(value: float, sign: str) -> str:
    if math.isnan(value):
        return f"{'-':>11}"
    return f"{value:>+11.1f}" if sign == "+" else f"{sign + format(value, '.1f'):>11}"


def _model_shape(name: str) -> ModelShape:
    """The model of conf/model whose name is the run's, punctuation aside."""
    known = {path.stem: path for path in sorted((paths.conf_dir() / "model").glob("*.yaml"))}
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    for stem, path in known.items():
        if re.sub(r"[^a-z0-9]", "", stem.lower()) == key:
            return ModelShape(stem, yaml.safe_load(path.read_text())["hf_config"])
    raise Unsupported(f"model {name}: no such shape in conf/model; known: {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, checked."""

    folder: Path
    runs: str = "*"
    host: HostSpec = field(default_factory=lambda: HostSpec(DEFAULT_HOST))
    jobs: int = 1
    out: Path = Path("outputs/validation")

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Parse the arguments after the command.

        Raises:
            ValidationError: a missing folder, an unknown key, or a value that isn't accepted.
        """
        known = ("runs", "host", "mode", "jobs", "out")
        given: dict[str, str] = {}
        folders = []
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals:
                folders.append(Path(argument))
            elif key not in known:
                raise ValidationError(f"unknown option {key!r}; accepted: {', '.join(known)}")
            else:
                given[key] = value
        if len(folders) != 1:
            raise ValidationError(f"expected one folder of measured runs, got {len(folders)}")
        host, mode = given.get("host", DEFAULT_HOST), given.get("mode", "table")
        if mode not in HOST_MODES:
            raise ValidationError(f"mode={mode}: accepted: {', '.join(HOST_MODES)}")
        if host not in known_tables():
            raise ValidationError(f"host={host}: accepted: {', '.join(known_tables())}")
        jobs = given.get("jobs", "1")
        if not jobs.isdecimal() or int(jobs) < 1:
            raise ValidationError(f"jobs={jobs}: accepted: an integer >= 1")
        return cls(
            folders[0],
            given.get("runs", "*"),
            HostSpec(host, cast(HostMode, mode)),
            int(jobs),
            Path(given.get("out", "outputs/validation")),
        )


def validate(options: Options, emulate: Emulate) -> list[Comparison]:
    """Emulate the chosen runs, write validation.csv, return the comparisons in the order of the runs."""
    runs = read_runs(options.folder, options.runs)

    def one(run: MeasuredRun) -> Comparison:
        comparison = compare(run, emulate, options.host, options.out)
        state = comparison.skipped and f"skipped: {comparison.skipped}"
        print(f"  {run.name}: {state or f'{comparison.wall_s:.1f} s'}", file=sys.stderr, flush=True)
        return comparison

    with ThreadPoolExecutor(options.jobs) as pool:
        comparisons = list(pool.map(one, runs))
    write_csv(comparisons, options.out / "validation.csv")
    return comparisons


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 if no run could be emulated, 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        options = Options.parse(arguments)
        all_runs = read_runs(options.folder)
        read_runs(options.folder, options.runs)
    except ValidationError as error:
        print(f"revati.validate: {error}", file=sys.stderr)
        return 2
    from revati.deployment.runner import TemplateClient, TemplateServer

    with TemplateServer(options.out / "logs") as server:

        def emulate(spec: DeploymentSpec, workload: Workload, folder: Path) -> Any:
            return TemplateClient(server.socket_path).run(spec, workload, folder)

        comparisons = validate(options, emulate)
    print(f"Host time: {options.host.name}, {options.host.mode}")
    print(format_table(comparisons, all_runs))
    print(f"All metrics: {options.out / 'validation.csv'}")
    return 0 if any(not comparison.skipped for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
