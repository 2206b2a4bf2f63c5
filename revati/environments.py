"""Python environments of what cannot share one with the rest, made by `revati.provision`."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

ROUTERS = "routers"

# The releases whose kernels and host costs were measured.
MEASURED = {"sglang": "0.5.17", "vllm": "0.26.0"}

# What runs in an environment of its own, and what is installed there: for an engine also what `revati`
# imports in its process.
REQUIREMENTS = {
    "sglang": (f"sglang=={MEASURED['sglang']}", "numpy", "pyarrow", "pyyaml"),
    ROUTERS: ("sglang-router==0.3.2", "vllm-router==0.1.17"),
}


class EnvironmentMissingError(RuntimeError):
    """An environment does not exist; the message says how to make it."""


def cache_dir() -> Path:
    """Where all is kept that can be made again: ``REVATI_CACHE``, else ``~/.cache/revati``."""
    return Path(os.environ.get("REVATI_CACHE") or Path.home() / ".cache" / "revati")


def environment_dir(engine: str) -> Path:
    """The engine's environment: ``REVATI_<ENGINE>_ENV``, else a folder of the cache by Python's version."""
    named = os.environ.get(f"REVATI_{engine.upper()}_ENV")
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(named) if named else cache_dir() / "environments" / f"{engine}-{version}"


def interpreter(engine: str) -> Path:
    """The Python that runs this engine's processes; the routers count as one here.

    Raises:
        EnvironmentMissingError: the engine has an environment of its own, and nobody made it yet.
    """
    if engine not in REQUIREMENTS:
        return Path(sys.executable)
    python = environment_dir(engine) / "bin" / "python"
    if not python.exists():
        raise EnvironmentMissingError(
            f"{engine} is not installed in {environment_dir(engine)}: run python -m revati.provision {engine}"
        )
    return python


def site_packages(engine: str) -> Path:
    """Where the packages of an engine's environment are."""
    return next(environment_dir(engine).glob("lib/python3*/site-packages"))


def unmeasured_release(engine: str) -> str | None:
    """A warning if another release of the engine is installed here than the measured one."""
    try:
        found = versions(engine)[engine] if engine in REQUIREMENTS else metadata.version(engine)
    except metadata.PackageNotFoundError:
        return None
    if found is None or found == MEASURED[engine]:
        return None
    return (
        f"{engine} {found}: its kernels and host costs were measured with {MEASURED[engine]}; "
        "compare a deployment with real hardware before you trust the result"
    )


def versions(engine: str) -> dict[str, str | None]:
    """Of the packages that an environment's requirements pin; None where they are not installed."""
    pinned = [name for name, exact, _ in (one.partition("==") for one in REQUIREMENTS[engine]) if exact]
    folders = [str(folder) for folder in environment_dir(engine).glob("lib/python3*/site-packages")]
    return {
        name: next((found.version for found in metadata.distributions(name=name, path=folders)), None)
        for name in pinned
    }


def cuda_home(engine: str) -> Path:
    """A CUDA toolkit made of the environment's wheels, for kernels that an engine compiles at run time."""
    return environment_dir(engine) / "cuda"
