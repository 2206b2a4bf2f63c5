"""Command line of the profiler: ``key=value`` pairs, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from revati import paths

FAMILIES = ("engine", "gemm", "attention", "kv_write", "copy", "gap", "collective")
MODELS = ("llama7b", "llama13b", "llama31_8b", "qwen3_8b", "llama31_70b", "mistral_7b", "qwen25_14b")
TENSOR_PARALLEL = (1, 2, 4, 8)
PRECISIONS = {"bf16": "bfloat16", "fp8": "float8_e4m3"}  # of linear layers, and the database's names

CHECKS = ("after", "only", "no")

HELP = f"""Measure this machine: its GPU's kernels for a kernel database, or its host for a host table.

usage: python -m revati.profile gpu=NAME [key=value …]
       python -m revati.profile host=NAME [engines=A,B] [logs=DIR]

  gpu=NAME            partition to write, e.g. h200 (required)
  out=DIR             kernel database to write to           (default: kernel_db)
  families=A,B        of {",".join(FAMILIES)}
                      (default: all but collective, which needs several GPUs)
  models=A,B          of conf/model (default: {",".join(MODELS)})
  tensor_parallel=A,B of {",".join(map(str, TENSOR_PARALLEL))}
  precisions=A,B      of {",".join(PRECISIONS)}: of the products, and of engines (default: bf16)
  budget_minutes=X    plan for X minutes and start no new unit of work after them (default: 10)
  again=yes|no        measure also what the database has (default: no)
  check=A             of {",".join(CHECKS)}: measure a sample again and report drift (default: after)
  plan=yes            show the plan and measure nothing

  host=NAME           calibrate the host: drive real engines, log their steps, write conf/host/NAME.yaml
  engines=A,B         which ones (default: the standard set; see revati.profile.host_calibration)
  logs=DIR            folder for the logs; engines whose logs are there are not run again
                      (default: outputs/host-NAME)

Needs torch, triton and pyarrow; attention, kv_write, engine, collective and fp8 need vllm, host= as well.
Work is split into units (a family for one model and parallelism), those first that take away most error for
their time. Each finished unit is a file in DIR/gpu=NAME/parts/; a unit that has one, or that the database
has, is skipped, so an interrupted run goes on where it stopped. DIR/gpu=NAME/sessions.jsonl says in which
state the GPU was.
"""


class UsageError(ValueError):
    """The command line is wrong; the message names the accepted values."""


@dataclass(frozen=True, slots=True)
class Options:
    gpu: str
    out: Path = Path("kernel_db")
    families: tuple[str, ...] = tuple(f for f in FAMILIES if f != "collective")
    models: tuple[str, ...] = MODELS
    tensor_parallel: tuple[int, ...] = TENSOR_PARALLEL
    precisions: tuple[str, ...] = ("bf16",)
    budget_minutes: float = 10.0
    again: bool = False
    check: str = "after"
    plan: bool = False


@dataclass(frozen=True, slots=True)
class HostOptions:
    """A host to calibrate; ``engines`` empty: the standard set."""

    host: str
    engines: tuple[str, ...] = ()
    logs: Path | None = None


def parse(arguments: list[str]) -> Options | HostOptions:
    """
    Raises:
        UsageError: an argument is no key=value pair, or a key or value is not accepted.
    """
    if any(argument.startswith("host=") for argument in arguments):
        return _host(_given(arguments, [f.name for f in fields(HostOptions)]))
    given = _given(arguments, [f.name for f in fields(Options)])
    if "gpu" not in given:
        raise UsageError("gpu=NAME is required, e.g. gpu=h200, or host=NAME")
    if not given["gpu"].isidentifier():
        raise UsageError(f"gpu={given['gpu']!r} must be letters, digits and underscores, e.g. h200")
    defaults = Options(gpu=given["gpu"])
    tensor_parallel = _choices("tensor_parallel", given, tuple(map(str, TENSOR_PARALLEL)), None)
    return Options(
        gpu=given["gpu"],
        out=Path(given.get("out", str(defaults.out))),
        families=_choices("families", given, FAMILIES, defaults.families) or (),
        models=_choices("models", given, tuple(paths.conf_names("model")), defaults.models) or (),
        tensor_parallel=tuple(map(int, tensor_parallel)) if tensor_parallel else TENSOR_PARALLEL,
        precisions=_choices("precisions", given, tuple(PRECISIONS), defaults.precisions) or (),
        budget_minutes=_positive("budget_minutes", given, defaults.budget_minutes),
        again=_yes("again", given),
        check=_one_of("check", given, CHECKS, defaults.check),
        plan=_yes("plan", given),
    )


def _given(arguments: list[str], known: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or key not in known or not value:
            raise UsageError(f"unknown argument {argument!r}; accepted: {', '.join(k + '=…' for k in known)}")
        given[key] = value
    return given


def _host(given: dict[str, str]) -> HostOptions:
    if not given["host"].isidentifier():
        raise UsageError(f"host={given['host']!r} must be letters, digits and underscores, e.g. h200_xeon")
    engines = tuple(given["engines"].split(",")) if "engines" in given else ()
    return HostOptions(given["host"], engines, Path(given["logs"]) if "logs" in given else None)


def _one_of(key: str, given: dict[str, str], accepted: tuple[str, ...], default: str) -> str:
    value = given.get(key, default)
    if value not in accepted:
        raise UsageError(f"{key}: unknown value {value!r}; accepted: {', '.join(accepted)}")
    return value


def _yes(key: str, given: dict[str, str]) -> bool:
    return _one_of(key, given, ("yes", "no"), "no") == "yes"


def _choices(
    key: str, given: dict[str, str], accepted: tuple[str, ...], default: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if key not in given:
        return default
    chosen = tuple(given[key].split(","))
    for value in chosen:
        if value not in accepted:
            raise UsageError(f"{key}: unknown value {value!r}; accepted: {', '.join(accepted)}")
    return chosen


def _positive(key: str, given: dict[str, str], default: float) -> float:
    try:
        value = float(given.get(key, default))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UsageError(f"{key} must be a number above 0, got {given[key]!r}")
    return value
