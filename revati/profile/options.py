"""Command line of the profiler: ``key=value`` pairs, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

FAMILIES = ("engine", "gemm", "attention", "kv_write", "copy", "gap", "collective")
MODELS = ("llama7b", "llama13b", "llama31_8b", "qwen3_8b", "llama31_70b")
TENSOR_PARALLEL = (1, 2, 4, 8)

HELP = f"""Measure kernels on this machine's GPU and add them to a kernel database.

usage: python -m revati.profile gpu=NAME [key=value …]

  gpu=NAME            partition to write, e.g. h200 (required)
  out=DIR             kernel database to write to           (default: kernel_db)
  families=A,B        of {",".join(FAMILIES)}
                      (default: all but collective, which needs several GPUs)
  models=A,B          of {",".join(MODELS)}
  tensor_parallel=A,B of {",".join(map(str, TENSOR_PARALLEL))}
  budget_minutes=X    start no new unit of work after X minutes (default: 10)

Needs torch, triton and pyarrow; attention, kv_write, engine and collective also need vllm.
Work is split into units (a family for one model and parallelism). Each finished unit is a file in
DIR/gpu=NAME/parts/; a unit that has one is skipped, so an interrupted run goes on where it stopped.
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
    budget_minutes: float = 10.0


def parse(arguments: list[str]) -> Options:
    """
    Raises:
        UsageError: an argument is no key=value pair, or a key or value is not accepted.
    """
    known = [f.name for f in fields(Options)]
    given: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or key not in known or not value:
            raise UsageError(f"unknown argument {argument!r}; accepted: {', '.join(k + '=…' for k in known)}")
        given[key] = value
    if "gpu" not in given:
        raise UsageError("gpu=NAME is required, e.g. gpu=h200")
    if not given["gpu"].isidentifier():
        raise UsageError(f"gpu={given['gpu']!r} must be letters, digits and underscores, e.g. h200")
    defaults = Options(gpu=given["gpu"])
    tensor_parallel = _choices("tensor_parallel", given, tuple(map(str, TENSOR_PARALLEL)), None)
    return Options(
        gpu=given["gpu"],
        out=Path(given.get("out", str(defaults.out))),
        families=_choices("families", given, FAMILIES, defaults.families) or (),
        models=_choices("models", given, MODELS, defaults.models) or (),
        tensor_parallel=tuple(map(int, tensor_parallel)) if tensor_parallel else TENSOR_PARALLEL,
        budget_minutes=_positive("budget_minutes", given, defaults.budget_minutes),
    )


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
